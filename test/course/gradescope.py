"""Grades on Gradescope: the submission in /autograder/submission, with the kit that this file lies
in. Writes /autograder/results/results.json, in the form of
https://gradescope-autograders.readthedocs.io/en/latest/specs/ (AUTOGRADER=folder: another root)."""

import json
import os
import pathlib

import grade
from student import KIT, nearest


def results(result, level):
    """results.json, from grade.json and the level of its hints."""
    tests = []
    for one in result["tests"]:
        said = one["output"] if one["output"] != result["verdict"] else ""
        hints = [f"hint {i}: {hint}" for i, hint in enumerate(one["hints"][:level], 1) if hint]
        tests.append(
            dict(
                name=one["name"],
                score=one["score"],
                max_score=one["max_score"],
                output="\n".join([said, *hints]).strip(),
                output_format="text",
                visibility="visible",
            )
        )
    return dict(
        score=result["score"],
        execution_time=result["execution_time"],
        output="\n".join([result["verdict"], *result["warnings"]]),
        output_format="text",
        visibility="visible",
        tests=tests,
        extra_data={name: result.get(name) for name in ("exercise", "seed", "kit", "graded")},
    )


def main():
    root = pathlib.Path(os.environ.get("AUTOGRADER") or "/autograder")
    name, cuda = grade.exercise(KIT.parent, [])
    files = grade.handed_in(name, cuda)
    submission = root / "submission"
    found = [path for file in files for path in submission.rglob(file)]
    result = grade.grade(nearest(found, submission), name, grade.seed(), cuda)
    text = json.dumps(results(result, int((KIT / "hint").read_text())), indent=1) + "\n"
    part = root / "results" / "results.json.part"
    part.parent.mkdir(exist_ok=True)
    part.write_text(text)
    part.replace(part.with_suffix(""))


if __name__ == "__main__":
    main()
