"""The named models: one table, each row with its sizes and its source.

A spec is plain data. It travels with every checkpoint (the model contract), so that an evaluation
needs nothing else to build the same model. A family is one file; a new one adds its rows here.
"""

from typing import Any

from clipjax.models.zoo import (
    bert_text,
    chinese_clip,
    clip_resnet,
    clip_vit,
    clipa,
    metaclip2,
    pe_core,
    siglip,
    siglip_naflex,
)

MODELS: dict[str, dict[str, Any]] = {
    **clip_vit.ROWS,
    **clip_resnet.ROWS,
    **siglip.ROWS,
    **siglip_naflex.ROWS,
    **clipa.ROWS,
    **bert_text.ROWS,
    **chinese_clip.ROWS,
    **pe_core.ROWS,
    **metaclip2.ROWS,
}
