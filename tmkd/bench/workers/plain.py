"""The loops that people write first with transformers: padded batches of 32, in fp32 unless given otherwise."""

import random

from protocol import serve

BATCH = 32


def load(options):
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(options["threads"])
    tokenizer = AutoTokenizer.from_pretrained(options["tokenizer"])
    if "config" in options:  # random weights: for speed only
        config = AutoConfig.for_model(**options["config"])
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(options["model"])
    bf16 = options.get("precision") == "bf16"
    if bf16 and options["do_what"] == "score":
        model = model.to(torch.bfloat16)

    def encode(questions, passages):
        return tokenizer(
            questions, passages, truncation=True, padding=True, max_length=options["max_length"], return_tensors="pt"
        )

    def score(questions, passages, labels):
        order = list(range(len(questions)))
        if options.get("sorted"):
            order.sort(key=lambda row: -len(questions[row]) - len(passages[row]))
        model.eval()
        found = [0.0] * len(order)
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                rows = order[start : start + BATCH]
                given = encode([questions[r] for r in rows], [passages[r] for r in rows])
                logits = model(**given).logits.float()
                for row, value in zip(rows, logits[:, 0].tolist()):
                    found[row] = value
        return found

    def train(questions, passages, labels):
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5)
        order = list(range(len(questions)))
        random.Random(0).shuffle(order)
        model.train()
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            given = encode([questions[r] for r in rows], [passages[r] for r in rows])
            target = torch.tensor([[float(labels[r])] for r in rows])
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(**given).logits
            torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target).backward()
            optimiser.step()
            optimiser.zero_grad()

    return train if options["do_what"] == "train" else score


serve(load)
