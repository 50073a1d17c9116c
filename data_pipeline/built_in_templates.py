"""Which chat templates are there for models that came without one?

No new ids are made for them: what the tokenizer has no token for is ordinary text, and where it has no <|im_end|>, its end
token ends a turn. They are valid for transformers too, so an exported model renders alike there.
"""

from __future__ import annotations

CHATML = """\
{%- for message in messages %}
    {%- if tools or message.tool_calls %}
        {{- raise_exception('the built-in template has no tools; set config.data.chat.template') }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + END_OF_TURN + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Stanford Alpaca's words; `input` and `instruction` come with rows of that form.
ALPACA = """\
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content + '\\n\\n' }}
    {%- elif message.role == 'user' and message.input %}
        {{- 'Below is an instruction that describes a task, paired with an input that provides further context. Write a response' }}
        {{- ' that appropriately completes the request.\\n\\n### Instruction:\\n' + message.instruction }}
        {{- '\\n\\n### Input:\\n' + message.input + '\\n\\n' }}
    {%- elif message.role == 'user' %}
        {{- 'Below is an instruction that describes a task. Write a response that appropriately completes the request.\\n\\n' }}
        {{- '### Instruction:\\n' + message.content + '\\n\\n' }}
    {%- elif message.role == 'assistant' and not message.tool_calls %}
        {{- '### Response:\\n' + message.content + END_OF_TURN + '\\n\\n' }}
    {%- else %}
        {{- raise_exception('the built-in template has no tools; set config.data.chat.template') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '### Response:\\n' }}
{%- endif %}
"""

BUILT_IN = {"chatml": CHATML, "alpaca": ALPACA}


def built_in_template(name: str, has_im_end: bool, adds_bos: bool) -> str:
    """Returns a template's source, ready for a tokenizer that has <|im_end|> or not, and wants a begin token or not."""
    end = "'<|im_end|>'" if has_im_end and name == "chatml" else "eos_token"
    begin = "{{- bos_token }}\n" if adds_bos else ""
    return begin + BUILT_IN[name].replace("END_OF_TURN", end)
