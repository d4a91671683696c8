"""Chat templates by name, with their sources."""

from model.spec.chat_template import ChatTemplate

_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

VICUNA_V0 = ChatTemplate(
    system=_HUMAN,
    around_system="{text}\n",
    user="### Human: {text}\n",
    assistant="### Assistant: {text}",
    end="\n###",
    after="\n",
)
"""Vicuna v0 (lm-sys/FastChat, `zero_shot`): an answer ends with the next turn's marker."""

VICUNA_V1 = ChatTemplate(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    ),
)
"""Vicuna v1.1 and later (lm-sys/FastChat, `vicuna_v1.1`)."""

LLAMA_2_CHAT = ChatTemplate(
    around_system="[INST] <<SYS>>\n{text}\n<</SYS>>\n\n",
    user="[INST] {text} ",
    user_after_system="{text} ",
    assistant="[/INST] {text} ",
    after="<s>",
)
"""LLaMA-2-Chat (facebookresearch/llama, `chat_completion`): each exchange starts with `<s>`."""

ALPACA = ChatTemplate(
    system=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    ),
    around_system="{text}\n\n",
    user="### Instruction:\n{text}\n\n",
    assistant="### Response:\n{text}",
    after="\n\n",
)
"""Alpaca (tatsu-lab/stanford_alpaca, `prompt_no_input`)."""

CHATML = ChatTemplate(
    system="You are a helpful assistant.",
    around_system="<|im_start|>system\n{text}<|im_end|>\n",
    user="<|im_start|>user\n{text}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{text}",
    end="<|im_end|>",
    after="\n",
)
"""Qwen-Chat and Qwen-VL-Chat (QwenLM/Qwen, `make_context`)."""

CHATGLM = ChatTemplate(
    user="[Round {round}]\n问：{text}\n",
    assistant="答：[gMASK]<sop>{text}",
    after="\n",
)
"""ChatGLM-6B (THUDM/ChatGLM-6B, `chat`), which counts rounds from 0.

Its context ends with `[gMASK]`, and its tokenizer ends an answer with `<eop>`.
"""

CHATGLM_2 = ChatTemplate(
    user="[Round {round}]\n\n问：{text}\n\n", assistant="答：{text}", after="\n\n"
)
"""ChatGLM2-6B (THUDM/ChatGLM2-6B, `build_prompt`)."""

CHATGLM_3 = ChatTemplate(
    around_system="<|system|>\n {text}",
    user="<|user|>\n {text}",
    assistant="<|assistant|>\n {text}",
    end="<|user|>",
)
"""ChatGLM3-6B (THUDM/ChatGLM3, PROMPT.md)."""

OPT_QA = ChatTemplate(user="Question: {text} ", assistant="Answer: {text}")
"""BLIP-2's questions to OPT (salesforce/LAVIS, `predict_answers`; Li et al. 2023, §4.2)."""

T5_QA = ChatTemplate(user="Question: {text} ", assistant="Short answer: {text}")
"""BLIP-2's questions to Flan-T5, which ask for a short answer (Li et al. 2023, §4.2)."""

CONTINUATION = ChatTemplate(user="{text}", assistant=" {text}")
"""No roles: the answer continues the question, as for a base model."""
