"""The exported graph gives the logits of the transformers module, for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from encoder_fixtures import OURS, THEIRS, inputs, tiny

from tmkd.export.fold import load_checkpoint
from tmkd.export.onnx import write_onnx
from tmkd.models.checkpoint import load_encoder, save_student
from tmkd.models.student import Student


@pytest.mark.parametrize("family", [*OURS, *THEIRS])
def test_graph_equals_the_transformers_module(family: str, tmp_path: Path) -> None:
    source = tiny(family, tmp_path / "source")
    student = Student(load_encoder(source, 2, layers=2), 2)
    torch.nn.init.normal_(student.golden.weight, std=0.5)
    save_student(student, tmp_path / "saved", source, 64, {})
    model = load_checkpoint(tmp_path / "saved")
    write_onnx(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    wanted = [value.name for value in session.get_inputs()]
    for count in (1, 5):  # neither is the size of the batch that was traced
        tensors = dict(zip(("input_ids", "attention_mask", "token_type_ids"), inputs(source, count), strict=True))
        given = {name: tensors[name] for name in wanted}
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        with torch.no_grad():
            np.testing.assert_allclose(found, model(**given).logits, atol=1e-5)
