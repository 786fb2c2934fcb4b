"""Requests and answers: text-embeddings-inference's rerank, Cohere's rerank (v1, v2), and questions.

Types are strict, as in those APIs: "5" is no number. Unknown fields are ignored, because some clients send more fields.
A list fails at its first wrong entry: to report a million wrong entries would take seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

QUERY = "How do I sort a hash by value?"
TRUNCATED = (
    "true where the pair (with a cached student: one of its two texts) has more tokens than the student reads, so that "
    "a part of it was not read"
)
TEXTS: list[JsonValue] = ["Sort the keys with a comparison of their values.", "Apache listens on port 80."]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


Documents = Annotated[list[str | dict[str, Any]], Field(fail_fast=True)]
"""Passages: texts, or objects that hold one in their field `text` or in the request's `rank_fields`."""
RankFields = Annotated[list[str], Field(max_length=32, fail_fast=True)]
_ONE_LIST: list[JsonValue] = [
    {"required": [name], "properties": {name: {"type": "array"}}} for name in ("texts", "documents")
]


class RerankRequest(_Request):
    """`POST /rerank`: with `texts` as text-embeddings-inference has it, with `documents` as infinity and vLLM do."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": QUERY, "texts": TEXTS}], "oneOf": _ONE_LIST})
    query: str = Field(description="the question")
    texts: Documents | None = Field(None, description="the passages to rank: texts, or objects whose `text` is ranked")
    documents: Documents | None = Field(None, description="the same; the answer is then infinity's")
    truncate: bool | None = Field(None, description="cut pairs beyond the student's length; null: as the server is set")
    truncation_direction: Literal["Right", "right", "Left", "left"] = Field(
        "Right", description="only `Right` is supported: the student reads the first tokens"
    )
    raw_scores: bool = Field(False, description="log-odds instead of probabilities")
    return_text: bool = Field(False, description="repeat each passage in the answer")
    model: str | None = Field(None, description="any name; the server has one student")
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="how many are returned; all unless given")
    return_documents: bool | None = Field(None, description="with `documents`: repeat each passage in the answer")
    rank_fields: RankFields | None = Field(None, description="the fields of an object that are ranked, in this order")


class Rank(BaseModel):
    """One passage: its index in the request, and its score (a probability, or log-odds)."""

    index: int
    score: float
    text: str | None = Field(None, description="with `return_text`")
    truncated: bool | None = Field(None, description=TRUNCATED)


class InfinityResult(BaseModel):
    """One document: its index in the request, and its score (a probability, or log-odds)."""

    index: int
    relevance_score: float
    document: str | dict[str, Any] | None = Field(None, description="with `return_documents`, the text that was ranked")
    truncated: bool | None = Field(None, description=TRUNCATED)


class InfinityAnswer(BaseModel):
    """The answer to `documents` on /rerank, best first, in the form of infinity.

    `usage` counts the tokens read of each pair; with a cached student, those of its longer text.
    """

    id: str
    object: Literal["rerank"]
    model: str
    created: int
    results: list[InfinityResult]
    usage: dict[str, int]


class V2Request(_Request):
    """Cohere's `POST /v2/rerank`; documents may be objects, as in its first API."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "student", "query": QUERY, "documents": TEXTS, "top_n": 1}]}
    )
    model: str | None = Field(None, description="any name; the server has one student")
    query: Annotated[str, Field(min_length=1)] = Field(description="the question")
    documents: Documents = Field(
        description="the passages: texts, or objects whose `text` (or `rank_fields`) is ranked"
    )
    top_n: Annotated[int, Field(ge=1)] | None = Field(None, description="how many are returned; all unless given")
    return_documents: bool | None = Field(None, description="repeat each passage in the answer")
    rank_fields: RankFields | None = Field(None, description="the fields of an object that are ranked, in this order")
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="accepted and ignored; documents are cut at the student's length"
    )


class V1Request(V2Request):
    """Cohere's `POST /v1/rerank`."""

    max_chunks_per_doc: int | None = Field(None, description="accepted and ignored; a document is one pair")


class CohereResult(BaseModel):
    """One document: its index in the request, and its score."""

    index: int
    relevance_score: float
    document: dict[str, Any] | None = Field(None, description="with `return_documents`")
    truncated: bool | None = Field(None, description=TRUNCATED)


class CohereAnswer(BaseModel):
    """Cohere's answer, best first. `meta.warnings` says how many documents were not read to their end."""

    id: str
    results: list[CohereResult]
    meta: dict[str, Any]


class AskRequest(_Request):
    """A question about the indexed documents."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"question": QUERY, "top": 5}]})
    question: Annotated[str, Field(min_length=1, max_length=2000)] = Field(description="the question")
    top: Annotated[int, Field(ge=1, le=100)] = Field(5, description="how many answers")
    candidates: Annotated[int, Field(ge=1, le=1000)] = Field(100, description="how many retrieved passages are ranked")
    ranker: Literal["student", "teacher"] = Field(
        "student", description="which model ranks; not every server has a teacher"
    )


class AskAnswer(BaseModel):
    """One passage. `marked` and `window` are spans of `text` in code points; `score` is in log-odds.

    `retrieval_rank` is its place among the candidates; `bm25_rank` and `dense_rank` say which search found it, and both
    are null for a passage that is beside one that was found.
    """

    rank: int
    passage_id: str
    text: str
    marked: list[int]
    window: list[int] | None
    score: float
    probability: float
    retrieval_rank: int
    title: str
    heading_path: list[str]
    source: str
    bm25_rank: int | None
    dense_rank: int | None


class AskAnswers(BaseModel):
    """Answers, best first. `answered` is false where the best one is below the no-answer threshold.

    `truncated` is true where the question is so long that the student does not read its end.
    """

    ranker: str
    question: str
    answered: bool
    truncated: bool
    answers: list[AskAnswer]
    candidates: int
    milliseconds: dict[str, float]


class TeiError(BaseModel):
    """A refusal. `field` is the field that is wrong, where it is a single one."""

    error: str
    error_type: Literal["Validation", "Empty", "Overloaded", "Unhealthy", "Backend", "Authorization", "NotFound"]
    field: str | None = None


class CohereError(BaseModel):
    """A refusal below /v1 and /v2."""

    message: str
    field: str | None = None
