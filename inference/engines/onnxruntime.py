"""The ONNX Runtime engine: a graph with fused attention, exported once, loaded without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.engines import DeviceOutOfMemory, EngineTraits, FloatArray, Head
from inference.padding import PaddedBatch
from inference.pooling import pooled


class OnnxRuntimeEngine:
    """An InferenceSession over an exported graph.

    Args:
        graph: the file that ``onnx_export`` or ``onnx_int8`` wrote: it returns token states, or a classifier's logits.
        head: what ``run`` returns.
        device: ``cpu`` or ``cuda:0``.
        threads: of one operator; 0 leaves the runtime's choice.
        int8_export: the digest of the export that an 8-bit graph belongs to; empty where the graph is in float32.
    """

    def __init__(
        self, graph: Path, head: Head, *, device: str = "cpu", threads: int = 0, int8_export: str = ""
    ) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=_providers(device))
        self._inputs = {each.name for each in self._session.get_inputs()}
        self._head = head
        self.traits = EngineTraits(
            name="onnxruntime-int8" if int8_export else "onnxruntime",
            precision="int8" if int8_export else "float32",
            device=device,
            export=int8_export,
        )

    def run(self, batch: PaddedBatch) -> FloatArray:
        """See Engine."""
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if "token_type_ids" in self._inputs:
            inputs["token_type_ids"] = batch.type_ids if batch.type_ids is not None else batch.ids * 0
        try:
            (output,) = self._session.run(None, inputs)
        except Exception as error:
            # The runtime's exceptions share no class that tells memory apart.
            if "Failed to allocate memory" in str(error) or "out of memory" in str(error):
                raise DeviceOutOfMemory from error
            raise
        return output if self._head is Head.LOGITS else pooled(output, batch, self._head)

    def close(self) -> None:
        """See Engine."""
        del self._session


def _providers(device: str) -> list[Any]:
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        return [("CUDAExecutionProvider", {"device_id": index}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]
