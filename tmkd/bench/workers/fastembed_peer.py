"""fastembed's TextCrossEncoder on our weights, as a custom model."""

from protocol import serve


def load(options):
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    TextCrossEncoder.add_custom_model(
        model="tmkd/bench", sources=ModelSource(hf="tmkd/bench"), model_file="onnx/model.onnx"
    )
    model = TextCrossEncoder("tmkd/bench", specific_model_path=options["model"], threads=options["threads"])

    def run(questions, passages, labels):
        return list(model.rerank_pairs(list(zip(questions, passages))))

    return run


serve(load)
