{{- define "etcd-operator.name" -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "etcd-operator.serviceAccount" -}}
{{- default (include "etcd-operator.name" .) .Values.serviceAccount.name }}
{{- end }}

{{- define "etcd-operator.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "etcd-operator.selector" -}}
app.kubernetes.io/name: etcd-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "etcd-operator.labels" -}}
{{ include "etcd-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/*
Some rules for the operator: in these namespaces, or everywhere if there are none. Outside of the
release's own namespace the names begin with that: another release may have the same name elsewhere.
*/}}
{{- define "etcd-operator.grant" -}}
{{- $root := .root }}
{{- $own := .name }}
{{- $qualified := printf "%s-%s" $root.Release.Namespace .name }}
{{- $rules := include (printf "etcd-operator.%s" .rules) $root }}
{{- range $namespace := default (list "") .namespaces }}
{{- $kind := ternary "Role" "ClusterRole" (ne $namespace "") }}
{{- $name := ternary $own $qualified (eq $namespace $root.Release.Namespace) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $name }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "etcd-operator.labels" $root | nindent 4 }}
rules:
  {{- $rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  name: {{ $name }}
  {{- with $namespace }}
  namespace: {{ . }}
  {{- end }}
  labels:
    {{- include "etcd-operator.labels" $root | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $kind }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ include "etcd-operator.serviceAccount" $root }}
    namespace: {{ $root.Release.Namespace }}
{{ end }}
{{- end }}
