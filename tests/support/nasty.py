"""Names that break what does not expect them: formulas, markup, HTML, control characters, letters that no font has."""

NASTY_NAMES = (
    r"$\frac{$", "$x$", "a_b^c{d}%", "back\\slash\\", "two\nlines\tand\x0bmore", "x" * 5000, "🐱 cat", ":cat:", "قطة",
    "中文", "\u202edlrow", "\x1b[31mred\x07\x9b", "<script>alert(1)</script>", '"&amp;<img src=x onerror=y>', "a|b|c",
    "`code` *bold* _it_ ~~gone~~", "[link](javascript:x) ![i](j)", "[/x]", "[bold]b[/bold]", "[link=http://x]y",
    "# head", "- item", "--- |", "<!-- c", "\ud800 half", "\u2028line", "", "   ", "e\u0301", "#1 @someone",
    "https://e.example/p www.e.example",
)  # fmt: skip
