"""Files of big_vision's kind: SigLIP, SigLIP 2, CLIPA and OpenVision as `.npz`."""

from clipjax.interop.big_vision.names import leaves, plain_names
from clipjax.interop.big_vision.reading import read_big_vision, recognises_big_vision, spec_of
