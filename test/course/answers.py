"""make answers, make answers Q=3: the readers' questions with their commands and answers, from
answers.md, on a terminal of 80 columns."""

import pathlib
import re
import sys
import textwrap

PAGE = pathlib.Path(__file__).with_name("answers.md")


def questions():
    """(question, command, lines of its output that hold the answer, answer), in their order."""
    form = r"^## \d+\. ([^\n]*)\n\n```sh\n(.*?)```\n\n```text\n(.*?)```\n\n(.*?)\s*(?=^## |\Z)"
    return re.findall(form, PAGE.read_text(), re.M | re.S)


def shown(n, question, command, lines, answer):
    title = textwrap.fill(f"{n}. {question}", 80, subsequent_indent=" " * (len(str(n)) + 2))
    return f"{title}\n\n{textwrap.indent(command, '    ')}\n{answer}\n"


def main():
    every = [shown(n, *one) for n, one in enumerate(questions(), 1)]
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    if wanted and wanted not in map(str, range(1, len(every) + 1)):
        sys.exit(f"answers: Q={wanted} is not a question; they are 1 to {len(every)}")
    print("\n".join([every[int(wanted) - 1]] if wanted else every), end="")


if __name__ == "__main__":
    main()
