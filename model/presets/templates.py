"""Formats of dialogues by name, each with its published source.

`tests/pipeline/data/golden/prompts.txt` has a dialogue in the format of every preset.
"""

from dataclasses import replace

from model.spec.chat_template import ChatTemplate

VICUNA_V0 = ChatTemplate(
    system=(
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions."
    ),
    around_system="{text}\n\n",
    user="### Human: {media}{text}\n",
    assistant="### Assistant: {text}",
    end="\n###",
    end_empty=False,
)
"""Vicuna v0 as LLaVA trains it (haotian-liu/LLaVA, llava/train/train.py, `preprocess`)."""

PANDAGPT = replace(VICUNA_V0, system="", medium="{medium} ")
"""PandaGPT and NExT-GPT (yxuansu/PandaGPT, code/model/openllama.py, `build_one_instance`)."""

VICUNA_V1 = ChatTemplate(
    system=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    end_empty=False,
)
"""Vicuna v1.1 and later (lm-sys/FastChat, fastchat/conversation.py, `vicuna_v1.1`)."""

VIDEO_CHATGPT = replace(
    VICUNA_V1,
    system=(
        "You are Video-ChatGPT, a large vision-language assistant. "
        "You are able to understand the video content that the user provides, and assist the user "
        "with a variety of tasks using natural language."
        "Follow the instructions carefully and explain your answers in detail based on the "
        "provided video."
    ),
)
"""Video-ChatGPT (mbzuai-oryx/Video-ChatGPT, video_conversation.py, `conv_video_chatgpt_v1`)."""

MINIGPT_4 = ChatTemplate(
    around_system="{text}",
    user="###Human: {media}{text} ",
    medium="{medium} ",
    assistant="###Assistant: {text}",
    end="###",
    end_empty=False,
)
"""MiniGPT-4, MiniGPT-5 and BuboGPT (Vision-CAIR/MiniGPT-4, `prompt_template` and `end_sym` of
train_configs/minigpt4_stage2_finetune.yaml; several rounds as in conversation.py)."""

VIDEO_LLAMA = ChatTemplate(
    around_system="{text}\n\n",
    user="###Human: {media}{text}\n",
    medium="{medium} ",
    assistant="###Assistant: {text}",
    end="\n###",
    end_empty=False,
)
"""Video-LLaMA (DAMO-NLP-SG/Video-LLaMA, video_instruct_dataset.py, `_add_speaker_and_signal`)."""

VIDEOCHAT = ChatTemplate(
    user="{media}###Human: {text} ",
    medium="###Human: {medium} ",
    assistant="###Assistant: {text}",
    end=" ###",
    end_empty=False,
)
"""VideoChat (OpenGVLab/Ask-Anything, video_chat/dataset/it_dataset.py, `process_qa`): the medium
has a turn of its own."""

MPLUG_OWL = ChatTemplate(
    system=(
        "The following is a conversation between a curious human and AI assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    ),
    around_system="{text}\n",
    user="{media}Human: {text}\n",
    medium="Human: {medium}\n",
    assistant="AI: {text}",
    after="\n",
)
"""mPLUG-Owl (X-PLUG/mPLUG-Owl, README.md; ends: pipeline/data_utils/xgpt3_dataset.py)."""

LLAMA_2_CHAT = ChatTemplate(
    around_system="[INST] <<SYS>>\n{text}\n<</SYS>>\n\n",
    user="[INST] {media}{text} ",
    user_after_system="{media}{text} ",
    assistant="[/INST] {text} ",
    after="<s>",
)
"""LLaMA-2-Chat (facebookresearch/llama, `chat_completion`): each exchange starts with `<s>`."""

MINIGPT_V2 = replace(LLAMA_2_CHAT, medium="{medium} ", assistant="[/INST] {text}", end_empty=False)
"""MiniGPT-v2 (Vision-CAIR/MiniGPT-4, conversation.py, `CONV_VISION_minigptv2`; `</s>` is
`end_sym` of train_configs/minigptv2_finetune.yaml)."""

CODI_2 = ChatTemplate(
    user="{media}{text}", medium="{medium} ", assistant=" {text}", end_between="", end_empty=False
)
"""CoDi-2 (microsoft/i-Code, CoDi-2/core/models/mmllama/openllama.py, `build_one_instance`): texts
alone, one after the other; its text has no end, here the last answer has one."""

COGVLM = ChatTemplate(
    user="{media} [INST] {text} ",
    medium="{medium}",
    assistant="[/INST] {text}",
    end_between="",
    end_empty=False,
)
"""CogVLM (THUDM/CogVLM, utils/utils/language.py, `chat_history_to_prompt`): pictures come first,
and only the last answer has an end."""

ALPACA = ChatTemplate(
    system=(
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
    ),
    around_system="{text}\n\n",
    user="### Instruction:\n{media}{text}\n\n",
    assistant="### Response:\n{text}",
    after="\n\n",
)
"""Alpaca (tatsu-lab/stanford_alpaca, `prompt_no_input`)."""

CHATML = ChatTemplate(
    system="You are a helpful assistant.",
    around_system="<|im_start|>system\n{text}<|im_end|>\n",
    user="<|im_start|>user\n{media}{text}<|im_end|>\n",
    assistant="<|im_start|>assistant\n{text}",
    end="<|im_end|>",
    after="\n",
)
"""Qwen-Chat and Qwen-VL-Chat (QwenLM/Qwen-VL, finetune.py, `preprocess`)."""

CHATGLM = ChatTemplate(
    around_system="{text}\n",
    user="{media}[Round {round0}]\n问：{text}\n",
    medium="{medium}",
    assistant="答：[gMASK]<sop>{text}",
    after="\n",
)
"""ChatGLM-6B in X-LLM (phellonchen/X-LLM, xllm/datasets/datasets/vsd_instruction.py; also
THUDM/ChatGLM-6B, ptuning/main.py), which counts rounds from 0.

Its context ends with `[gMASK]`, and its tokenizer ends an answer with `<eop>`.
"""

CHATGLM_2 = ChatTemplate(
    user="[Round {round}]\n\n问：{media}{text}\n\n", assistant="答：{text}", after="\n\n"
)
"""ChatGLM2-6B (THUDM/ChatGLM2-6B, `build_prompt`)."""

CHATGLM_3 = ChatTemplate(
    around_system="<|system|>\n {text}",
    user="<|user|>\n {media}{text}",
    assistant="<|assistant|>\n {text}",
    end="<|user|>",
)
"""ChatGLM3-6B (THUDM/ChatGLM3, PROMPT.md): the next turn's marker ends an answer."""

OPT_QA = ChatTemplate(
    user="Question: {text} ", assistant="Answer: {text}", end="\n", media_first=True
)
"""BLIP-2's questions to OPT (Li et al. 2023, §4.2); texts end with a line break (salesforce/LAVIS,
lavis/models/blip2_models/blip2_opt.py)."""

T5_QA = ChatTemplate(user="Question: {text} ", assistant="Short answer: {text}", media_first=True)
"""BLIP-2's questions to Flan-T5, which ask for a short answer (Li et al. 2023, §4.2)."""

INSTRUCTBLIP = ChatTemplate(user="{text}", assistant=" {text}", media_first=True)
"""InstructBLIP (salesforce/LAVIS, blip2_vicuna_instruct.py): the instruction alone."""

X_INSTRUCTBLIP = ChatTemplate(user="{media}{bos}{text}", medium="{medium}", assistant=" {text}")
"""X-InstructBLIP (salesforce/LAVIS, blip2_vicuna_xinstruct.py): the cue of a medium and the
instruction begin a sequence each."""

FLAMINGO_QA = ChatTemplate(
    user="{media}Question: {text} ", medium="{medium}", assistant="Answer: {text}"
)
"""Flamingo's questions (Alayrac et al. 2022, figure 8); its `<EOC>` is the tokenizer's end."""

CONTINUATION = ChatTemplate(user="{media}{text}", medium="{medium}", assistant=" {text}")
"""No roles: the answer continues the question, as for a base model."""
