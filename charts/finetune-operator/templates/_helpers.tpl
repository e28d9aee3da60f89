{{/* Name of every object: the release's, which already says what it is in most cases. */}}
{{- define "finetune-operator.name" -}}
{{- $chart := .Values.nameOverride | default .Chart.Name }}
{{- $name := printf "%s-%s" .Release.Name $chart }}
{{- if contains $chart .Release.Name }}{{ $name = .Release.Name }}{{ end }}
{{- .Values.fullnameOverride | default $name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* Name of what belongs to no namespace: two releases of one name in two namespaces don't meet there. */}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s-%s" (include "finetune-operator.name" .) .Release.Namespace }}
{{- end }}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "finetune-operator.name" .) }}
{{- else -}}
{{- required "serviceAccount.create is false: write the name of a ServiceAccount that is there into serviceAccount.name" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* Of one of the values image and trainerImage, given as (list $ value). */}}
{{- define "finetune-operator.image" -}}
{{- $root := index . 0 }}{{ $image := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* Of what `helm test` makes: no selector of the operator's pods matches them. */}}
{{- define "finetune-operator.testLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* The file of site defaults, as the operator reads it; what is empty is left out. Ids are written out even where they are
null: to leave an id to the cluster is a choice too. */}}
{{- define "finetune-operator.site" -}}
{{- $site := dict "trainerImage" (include "finetune-operator.image" (list . .Values.trainerImage)) }}
{{- range $key := list "imagePullSecrets" "tolerations" "nodeSelector" "cacheClaim" "hubEndpoint" "caBundle" }}
{{- with index $.Values.site $key }}{{ $_ := set $site $key . }}{{ end }}
{{- end }}
{{- with .Values.site.caBundle }}
{{- if contains "PRIVATE KEY" . }}{{ fail "site.caBundle holds a private key, and everyone could read it: leave only certificates in it" }}{{ end }}
{{- if not (contains "-----BEGIN CERTIFICATE-----" .) }}{{ fail "site.caBundle is no PEM text of certificates: it must contain -----BEGIN CERTIFICATE-----; give it the file with --set-file site.caBundle=ca.pem" }}{{ end }}
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
{{- toYaml $site }}
{{- end }}
