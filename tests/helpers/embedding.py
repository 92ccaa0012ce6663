"""`clipjax embed`, with small shards and batches."""


def embed(command, checkpoint, spec, out, *flags):
    return command(
        *("embed", f"--checkpoint={checkpoint}", f"--data={spec}", f"--out={out}"),
        *("--shard_size=8", "--batch_size=4", "--max_bad_fraction=0.1", *flags),
    )
