"""Twenty families of transformers, from tiny configurations with random weights: nothing is downloaded.

A row is (class, configuration class, options, example, least): `least` is the share of matrix and kernel entries that must
be free to be cut. `PICKED` names the outputs to hold on to where a model also returns hidden states.
"""

import os

import torch
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def words(**more):
    return lambda: {"input_ids": torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0)), **more}


def image(size=32):
    return lambda: {"pixel_values": draw(2, 3, size, size)}


def both():
    return {**words()(), **image()()}


def translation():
    return {**words(use_cache=False)(), "decoder_input_ids": words()()["input_ids"]}


def speech():
    return {"input_features": draw(2, 8, 32), "decoder_input_ids": words()()["input_ids"], "use_cache": False}


BLOCKS = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
TEXT = {**BLOCKS, "vocab_size": 64, "max_position_embeddings": 32}
IMAGE = {**BLOCKS, "image_size": 32, "patch_size": 8}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED = {**TEXT, "num_key_value_heads": 2}
DISTIL = {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "vocab_size": 64, "max_position_embeddings": 32}
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 4, "vocab_size": 64, "n_positions": 32, **ENDS}
OPT = {
    "hidden_size": 24, "word_embed_proj_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 40,
    "vocab_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
T5 = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
WHISPER = {
    "d_model": 24, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "vocab_size": 64, "num_mel_bins": 8, "max_source_positions": 16,
    "max_target_positions": 16, "decoder_start_token_id": 1, **ENDS,
}  # fmt: skip
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
CONVNEXT = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
CLIP = {"text_config": {**TEXT, **ENDS}, "vision_config": IMAGE, "projection_dim": 16}
SEGFORMER = {
    "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16,
}  # fmt: skip
DETR = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "d_model": 24, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40, "num_queries": 5,
}  # fmt: skip
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "out_features": ["stage4"]}

FAMILIES = {
    "bert": ("BertForSequenceClassification", "BertConfig", TEXT, words(), 0.99),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", TEXT, words(), 0.99),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", DISTIL, words(), 0.99),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2, words(use_cache=False), 0.99),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, words(use_cache=False), 0.99),
    "opt": ("OPTForCausalLM", "OPTConfig", OPT, words(use_cache=False), 0.99),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GROUPED, words(use_cache=False), 0.99),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**GROUPED, "sliding_window": None}, words(use_cache=False), 0.99),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GROUPED, words(use_cache=False), 0.99),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**GROUPED, "head_dim": 6}, words(use_cache=False), 0.99),
    "phi": ("PhiForCausalLM", "PhiConfig", {**TEXT, "hidden_size": 32}, words(use_cache=False), 0.99),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5, translation, 0.9),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", WHISPER, speech, 0.95),
    "vit": ("ViTForImageClassification", "ViTConfig", IMAGE, image(), 0.99),
    "deit": ("DeiTForImageClassification", "DeiTConfig", IMAGE, image(), 0.99),
    "swin": ("SwinForImageClassification", "SwinConfig", SWIN, image(), 0.95),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", CONVNEXT, image(), 0.99),
    "clip": ("CLIPModel", "CLIPConfig", CLIP, both, 0.6),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", SEGFORMER, image(64), 0.99),
    "detr": ("DetrForObjectDetection", "DetrConfig", DETR, image(64), 0.9),
}
PICKED = {
    "t5": (("logits",), 0.95),
    "whisper": (("logits",), 0.95),
    "clip": (("logits_per_image", "logits_per_text"), 0.95),
    "detr": (("logits", "pred_boxes"), 0.9),
}
"""Family to the outputs that matter, and the share that is free once only these keep their shape."""


class Only(nn.Module):
    """A model that returns some of its outputs."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, **inputs):
        out = self.model(**inputs)
        return tuple(out[name] for name in self.names)


def build(family, *, only=False, **more):
    """A fresh model of the family, of seeded random weights."""
    from secateur.io.vision import torchvision

    torchvision()  # transformers imports it, and it may need help
    import transformers

    model, config, options, _, _ = FAMILIES[family]
    if family == "detr":
        options = {**options, "backbone_config": transformers.ResNetConfig(**RESNET)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(transformers, model)(getattr(transformers, config)(**options, **more))
    return Only(made, PICKED[family][0]) if only else made


def example(family):
    """Named arguments of one call."""
    return FAMILIES[family][3]()
