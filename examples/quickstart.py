"""Make a small student from labelled pairs: train two teachers, distil, export, score. It takes about a minute."""

import tmkd

FAQ = [  # a question, the same in other words, and the passage that answers it
    ("How do I copy a file?", "duplicate a document", "Use cp: it writes a second file with the same content."),
    ("How do I delete a folder?", "get rid of a directory", "rm -r removes the directory and everything in it."),
    ("How do I find large files?", "which files are the biggest", "find -size +100M lists files above 100 megabytes."),
    ("How do I see free disk space?", "is my disk full", "df -h shows how much room each file system has left."),
    ("How do I stop a process?", "kill a program that hangs", "Send it a signal: kill with its number ends it."),
    ("How do I sort a list in Python?", "put items in order", "Call sorted(items), or items.sort() in place."),
    ("How do I join two tables in SQL?", "combine rows of tables", "Write JOIN and the condition that links the keys."),
    ("How do I change my password?", "new login secret", "passwd asks for the old password, then for the new one."),
]
passages = [passage for _, _, passage in FAQ]


def pairs(questions: list[str]) -> tmkd.Pairs:
    """Every question with every passage; label 1 where the passage answers the question."""
    rows = [(q, p, int(i == j)) for i, q in enumerate(questions) for j, p in enumerate(passages)]
    return tmkd.Pairs.build([q for q, _, _ in rows], [p for _, p, _ in rows], labels=[label for _, _, label in rows])


run = tmkd.Run.from_pairs(
    train=pairs([question for question, _, _ in FAQ]),
    dev=pairs([other for _, other, _ in FAQ]),
    workspace="quickstart",
    max_length=48,
    teachers=[tmkd.Teacher(name=name, seed=seed, epochs=15, batch_size=8) for seed, name in enumerate("ab")],
    student=tmkd.StudentShape(layers=3, start="teacher"),
    stage1=tmkd.Stage1(learning_rate=2e-4, epochs=10, batch_size=8),
    stage2=tmkd.Stage2(learning_rate=3e-5, epochs=4, batch_size=8),
    methods=["tmkd"],
    export=tmkd.Export(backends=("onnx-fp32",)),
)
scorer = tmkd.Scorer(run.export().folder)
for question in ("How full is my disk?", "How do I get a new password?"):  # no row has these questions
    print(question, "->", passages[int(scorer.scores([question] * len(passages), passages).argmax())])
