"""A page of HTML, read strictly, and what would break out of one."""

from html.parser import HTMLParser

HOSTILE = "<script>alert(\"x\")</script> & 'co'"


class Page(HTMLParser):
    """Collects tags and text, and fails on tags that do not match."""

    VOID = ("meta", "img", "line", "circle", "polyline", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
