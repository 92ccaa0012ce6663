"""Files of tensors: safetensors, torch's zip archives and .npz, read one tensor at a time.

All that is read is untrusted data: nothing is unpickled by pickle, nothing in a file is executed,
and each size is checked before memory is taken for it.
"""

from clipjax.interop.files.opening import file_kind, first_of, open_tensors
from clipjax.interop.files.safetensors import save_safetensors
