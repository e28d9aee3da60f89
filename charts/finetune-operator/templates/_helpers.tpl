{{/* Name of every object: <release>-<chart>, or only the release if its name contains the chart's name. */}}
{{- define "finetune-operator.name" -}}
{{- $chart := .Values.nameOverride | default .Chart.Name }}
{{- $name := printf "%s-%s" .Release.Name $chart }}
{{- if contains $chart .Release.Name }}{{ $name = .Release.Name }}{{ end }}
{{- .Values.fullnameOverride | default $name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of cluster-scoped objects. It contains the namespace, so that two releases of the same name do not conflict. */}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s-%s" (include "finetune-operator.name" .) .Release.Namespace }}
{{- end }}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.name" .) }}
{{- else -}}
{{- required "serviceAccount.create is false: write the name of an existing ServiceAccount into serviceAccount.name" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Image reference of the value image or trainerImage. The argument is (list $ value). */}}
{{- define "finetune-operator.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of every object. commonLabels replace none of the chart's own. */}}
{{- define "finetune-operator.labels" -}}
{{- $own := include "finetune-operator.selector" . | fromYaml }}
{{- $_ := set $own "app.kubernetes.io/version" .Chart.AppVersion }}
{{- $_ := set $own "app.kubernetes.io/managed-by" .Release.Service }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version) }}
{{- merge $own .Values.commonLabels | toYaml }}
{{- end }}

{{/* Labels of the objects that `helm test` creates. No selector of the operator's pods matches them. */}}
{{- define "finetune-operator.testLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The file with the defaults for training pods, which the operator reads. Empty values are left out. IDs are written even if they
are null, because null means that the cluster assigns the ID. */}}
{{- define "finetune-operator.site" -}}
{{- $site := dict "trainerImage" (include "finetune-operator.image" (list . .Values.trainerImage)) }}
{{- range $key := list "imagePullSecrets" "tolerations" "nodeSelector" "cacheClaim" "hubEndpoint" "caBundle" }}
{{- with index $.Values.site $key }}{{ $_ := set $site $key . }}{{ end }}
{{- end }}
{{- with .Values.site.caBundle }}
{{- if contains "PRIVATE KEY" . }}{{ fail "site.caBundle contains a private key, and every user could read it: leave only certificates in it" }}{{ end }}
{{- if not (contains "-----BEGIN CERTIFICATE-----" .) }}{{ fail "site.caBundle is not PEM text with certificates: it must contain -----BEGIN CERTIFICATE-----; set it from a file with --set-file site.caBundle=ca.pem" }}{{ end }}
{{- end }}
{{- $proxy := dict }}
{{- range $key, $value := .Values.site.proxy }}{{ with $value }}{{ $_ := set $proxy $key . }}{{ end }}{{ end }}
{{- with $proxy }}{{ $_ := set $site "proxy" . }}{{ end }}
{{- $ids := dict }}
{{- range $key := list "runAsUser" "runAsGroup" "fsGroup" }}
{{- $id := index ($.Values.site.securityContext | default dict) $key }}
{{- $_ := set $ids $key (kindIs "invalid" $id | ternary nil ($id | int64)) }}
{{- end }}
{{- $_ := set $site "securityContext" $ids }}
{{- with .Values.site.networkPolicy }}
{{- if .enabled }}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" $.Release.Namespace) }}
{{- $pods := dict "matchLabels" (include "finetune-operator.selector" $ | fromYaml) }}
{{- $policy := dict "enabled" true "operatorPeer" (dict "namespaceSelector" $namespace "podSelector" $pods) }}
{{- with .metricsFrom }}{{ $_ := set $policy "metricsFrom" . }}{{ end }}
{{- $_ := set $site "networkPolicy" $policy }}
{{- end }}
{{- end }}
{{- if not .Values.site.podGroups }}{{ $_ := set $site "podGroups" false }}{{ end }}
{{- toYaml $site }}
{{- end }}
