from collections import Counter

from clipjax.data.captions import captions_by_language
from clipjax.data.source import SampleError


class Texts:
    def __init__(self, *texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        if self.texts[index] is None:
            raise SampleError("missing", "not there")
        return {"image": b"", "text": self.texts[index], "key": str(index)}


def test_every_caption_comes_with_its_language():
    source = Texts("one", ("two", "three"), {"de": ("vier", "fünf"), "en": "six"}, None, " ")
    counts = Counter()
    found = list(captions_by_language(source, counts))
    assert found == [
        ("captions", "one"),
        ("captions", "two"),
        ("captions", "three"),
        ("de", "vier"),
        ("de", "fünf"),
        ("en", "six"),
    ]
    assert counts == {"missing": 1}
