"""The printing house. It takes no book without a number, and says so only when the book is there."""


class PrinterRefusal(Exception):
    """The printer does not print this."""


def print_book(title: str, chapters: list[str], isbn: str) -> str:
    if len(isbn.replace("-", "")) != 13:
        raise PrinterRefusal(f"{title!r} cannot be printed: {isbn!r} is not an ISBN of 13 digits")
    pages = max(1, sum(map(len, chapters)) // 1_800)
    return f"{title!r} is in print: {len(chapters)} chapters, {pages} pages, ISBN {isbn}"
