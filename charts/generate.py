"""The chart's CRD template, generated from finetune_api. `python charts/generate.py` prints it.

The CRD is a template and not in the chart's `crds/` folder, because Helm never upgrades the files in that folder.
"""

import sys

from finetune_api import crd

_HEAD = """\
{{- if .Values.crds.enabled }}
"""
_METADATA = """\
metadata:
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
  labels:
    {{- include "finetune-operator.labels" . | nindent 4 }}
"""
_TAIL = """\
{{- end }}
"""


def render() -> str:
    """Return the template as text. Values decide whether Helm installs the CRD and whether an uninstall keeps it."""
    comment, start, body = crd.render().partition("apiVersion:")
    before, metadata, after = body.partition("\nmetadata:\n")
    if "{{" in body or not metadata:
        raise ValueError("the CRD can't become a template: a description with '{{' in it, or no metadata")
    note = comment.removeprefix("# ").rstrip()
    return f"{{{{- /* {note} */ -}}}}\n" + _HEAD + start + before + "\n" + _METADATA + after + _TAIL


if __name__ == "__main__":
    sys.stdout.write(render())
