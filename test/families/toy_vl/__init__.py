"""
A toy family: Qwen2.5-VL's own model, asked in turns of another kind.

Each step of video has its time written before it and is closed after it, as in Qwen3-VL's and
StreamingVLM's turns; the user's turn ends in another way.
"""

from dataclasses import dataclass

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sww_ros.models.qwen2_5_vl import ChatTurns, Qwen25VL


class ToyConfig(Qwen2_5_VLConfig):
    model_type = 'toy_vl'


class ToyModel(Qwen2_5_VLForConditionalGeneration):
    config_class = ToyConfig


@dataclass(frozen=True)
class ToyTurns(ChatTurns):
    tail: str = 'over<|im_end|>\n'

    def prefix(self, system, prompt):
        return f'<|im_start|>{system}\n<|im_start|>user\n', prompt, '\n'

    def around_step(self, index, seconds):
        return f'{index * seconds:.1f} s<|vision_start|>', '<|vision_end|>'


class Toy(Qwen25VL):
    name = 'Toy-VL'
    turns = ToyTurns()
    config_class = ToyConfig

    def stock(self, source, **options):
        return ToyModel.from_pretrained(source, use_safetensors=True, attn_implementation='sdpa',
                                        **options)


FAMILY = Toy()
