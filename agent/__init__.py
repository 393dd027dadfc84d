"""Outrider: answers offline, knows how sure it is, escalates when there is a line."""

import os

__version__ = "0.1.0"

# Read by libraries when they load, in this process and in every child. Without the first, onnxruntime writes an
# identifier of the device into the home directory and reports to its maker; without the second, huggingface_hub tells
# the hub what runs here. Nothing leaves this device that policy has not let out.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
