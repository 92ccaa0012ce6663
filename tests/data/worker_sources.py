"""Sources, transforms and tokenizers that worker processes can import."""

import os
import signal
import time
import warnings

import numpy as np
from absl import logging

from clipjax.data import SampleError


class Numbers:
    """Example i is a picture of the number i; some are bad, or end or halt who touches them."""

    class_names = None

    def __init__(self, size, *, bad=(), error=(), deadly=(), hanging=(), delay_s=0.0):
        self.size, self.delay_s = size, delay_s
        self.bad, self.error = frozenset(bad), frozenset(error)
        self.deadly, self.hanging = frozenset(deadly), frozenset(hanging)

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        time.sleep(self.delay_s)
        if index in self.bad:
            raise SampleError("planted", "it is bad", f"number-{index}")
        if index in self.error:
            raise ZeroDivisionError("a bug")
        if index in self.deadly:
            os.kill(os.getpid(), signal.SIGSEGV)
        if index in self.hanging:
            time.sleep(1000)
        image = np.zeros((2, 2, 3), np.uint8)
        image[0] = *divmod(index, 256), 0
        return {"image": image, "text": str(index), "key": f"number-{index}"}

    def fingerprint(self):
        return f"numbers/{self.size}"


class Unreadable(Numbers):
    """Pickles here, and does not unpickle elsewhere."""

    def __reduce__(self):
        return _fail, ()


def _fail():
    raise LookupError("the storage is not mounted here")


def tokens_of(texts):
    return np.array([[len(text), sum(map(ord, text))] for text in texts], np.int32)


def tokens_of_three(texts):
    return np.array([[len(text), 0, 1] for text in texts], np.int32)


def numbers_in(batch):
    image = batch["image"].astype(int)
    return (image[:, 0, 0, 0] * 256 + image[:, 0, 0, 1]).tolist()


class Talkative(Numbers):
    """Warns as storage does: of a file that it names as it is written."""

    def __getitem__(self, index):
        logging.warning("s3://user:CANARY@bucket/%d\x1b[2J", index)
        warnings.warn("a picture named \x1b[2J", stacklevel=1)
        return super().__getitem__(index)
