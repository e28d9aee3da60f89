"""The chart's CRD template, generated from finetune_api: `python charts/generate.py` prints it.

The CRD is a template and not in `crds/`, because Helm never upgrades what lies there.
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
    """The template as text; Helm decides on the CRD at all and on the annotation that keeps it at an uninstall."""
    comment, start, body = crd.render().partition("apiVersion:")
    before, metadata, after = body.partition("\nmetadata:\n")
    if "{{" in body or not metadata:
        raise ValueError("the CRD can't become a template: a description with '{{' in it, or no metadata")
    note = comment.removeprefix("# ").rstrip()
    return f"{{{{- /* {note} */ -}}}}\n" + _HEAD + start + before + "\n" + _METADATA + after + _TAIL


if __name__ == "__main__":
    sys.stdout.write(render())
