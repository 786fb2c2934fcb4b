"""sentence-transformers: CrossEncoder.predict with its torch, ONNX and OpenVINO backends, and CrossEncoderTrainer."""

import shutil
import tempfile
from pathlib import Path

from protocol import serve


def load(options):
    import torch

    torch.set_num_threads(options["threads"])
    return train(options) if options["do_what"] == "train" else predict(options)


def predict(options):
    import torch
    from sentence_transformers import CrossEncoder

    backend, int8 = options.get("backend", "torch"), options.get("int8", False)
    folder = options["model"]
    if backend != "torch":
        folder = tempfile.mkdtemp(prefix="tmkd-bench-")
        shutil.copytree(options["model"], folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("onnx"))
    model = CrossEncoder(folder, backend=backend, max_length=options["max_length"], activation_fn=torch.nn.Identity())
    if int8:
        model = quantised(model, backend, folder, options)

    def run(questions, passages, labels):
        return model.predict(list(zip(questions, passages)), show_progress_bar=False)

    return run


def quantised(model, backend, folder, options):
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.backend import (
        export_dynamic_quantized_onnx_model,
        export_static_quantized_openvino_model,
    )

    if backend == "onnx":
        export_dynamic_quantized_onnx_model(model, options["int8"], folder)
    else:
        export_static_quantized_openvino_model(
            model,
            quantization_config=None,
            model_name_or_path=folder,
            dataset_name=options["calibration"],
            dataset_config_name="default",
            dataset_split="train",
            column_name="text",
        )
    file = next(path for path in sorted(Path(folder).rglob("*q*int8*")) if path.suffix in (".onnx", ".xml"))
    return CrossEncoder(
        folder,
        backend=backend,
        max_length=options["max_length"],
        activation_fn=torch.nn.Identity(),
        model_kwargs={"file_name": str(file.relative_to(folder))},
    )


def train(options):
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    model = CrossEncoder(options["model"], max_length=options["max_length"])

    def run(questions, passages, labels):
        with tempfile.TemporaryDirectory() as out:
            rows = Dataset.from_dict(
                {"question": questions, "passage": passages, "label": [float(label) for label in labels]}
            )
            arguments = CrossEncoderTrainingArguments(
                output_dir=out,
                num_train_epochs=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                **options.get("arguments", {}),
            )
            CrossEncoderTrainer(
                model=model, args=arguments, train_dataset=rows, loss=BinaryCrossEntropyLoss(model)
            ).train()

    return run


serve(load)
