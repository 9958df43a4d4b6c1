{{/* Names. Pods, Services and Secrets are named after this, so it is short. */}}
{{- define "tailwater.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- $whole := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $whole .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "tailwater.serviceAccountName" -}}
{{- default (ternary (include "tailwater.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* Takes root and component. */}}
{{- define "tailwater.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Takes root and component. */}}
{{- define "tailwater.labels" -}}
{{ include "tailwater.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tailwater.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}{{ else }}{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{- define "tailwater.scheme" -}}
{{ ternary "https" "http" .Values.tls.enabled }}
{{- end }}

{{/* What follows a Service's name. */}}
{{- define "tailwater.domain" -}}
{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end }}

{{/* Takes root, set (the StatefulSet), replicas, port, and named: whether names stand before the URLs. */}}
{{- define "tailwater.podURLs" -}}
{{- $urls := list }}
{{- range $i := until (int .replicas) }}
{{- $url := printf "%s://%s-%d.%s-peers.%s:%d" (include "tailwater.scheme" $.root) $.set $i $.set (include "tailwater.domain" $.root) (int $.port) }}
{{- $urls = append $urls (ternary (printf "%s-%d=%s" $.set $i $url) $url (get $ "named" | default false)) }}
{{- end }}
{{- join "," $urls }}
{{- end }}

{{/* Where clients connect: the fanouts if there are any. */}}
{{- define "tailwater.clientService" -}}
{{- $name := include "tailwater.fullname" . }}
{{- if .Values.fanout.enabled }}{{ $name }}-fanout{{ else if eq .Values.members.roles "all" }}{{ $name }}{{ else if .Values.relay.enabled }}{{ $name }}-relay{{ else }}
{{- fail "members.roles=consensus serves no clients: enable fanout or relay" }}{{ end }}
{{- end }}

{{- define "tailwater.clientURL" -}}
{{ include "tailwater.scheme" . }}://{{ include "tailwater.clientService" . }}.{{ include "tailwater.domain" . }}:2379
{{- end }}

{{/* The tiers below the members, each with all of its values. */}}
{{- define "tailwater.tiers" -}}
{{- $tiers := list }}
{{- if .Values.relay.enabled }}
{{- $own := dict "component" "relay" "kind" "StatefulSet" "autoscaling" (dict "enabled" false) "prefixes" list }}
{{- $tiers = append $tiers (mergeOverwrite (deepCopy .Values.fanout) (deepCopy .Values.relay) $own) }}
{{- end }}
{{- if .Values.fanout.enabled }}
{{- $tiers = append $tiers (mergeOverwrite (deepCopy .Values.fanout) (dict "component" "fanout" "prefixes" list)) }}
{{- end }}
{{- range .Values.scopedFanouts }}
{{- $tier := mergeOverwrite (deepCopy $.Values.fanout) (deepCopy .) (dict "component" (printf "fanout-%s" .name)) }}
{{- $tiers = append $tiers $tier }}
{{- end }}
{{- if and .Values.tls.enabled .Values.scopedFanouts }}
{{- range $tiers }}
{{- if ne .kind "StatefulSet" }}
{{- fail (printf "with tls.enabled and scopedFanouts, %s must be of kind StatefulSet: calls are sent on to names, which a certificate can hold" .component) }}
{{- end }}
{{- end }}
{{- end }}
{{- dict "tiers" $tiers | toJson }}
{{- end }}

{{/* What a tier follows, the preferred first. Takes root and tier. */}}
{{- define "tailwater.upstream" -}}
{{- $name := include "tailwater.fullname" .root }}
{{- $members := include "tailwater.podURLs" (dict "root" .root "set" $name "replicas" .root.Values.members.replicas "port" 2380) }}
{{- if and .root.Values.relay.enabled (ne .tier.component "relay") }}
{{- $relays := include "tailwater.podURLs" (dict "root" .root "set" (printf "%s-relay" $name) "replicas" .root.Values.relay.replicas "port" 2380) }}
{{- $relays }},{{ $members }}
{{- else }}
{{- $members }}
{{- end }}
{{- end }}

{{/* Takes root; the Secret of one side: server, peer or client. */}}
{{- define "tailwater.tlsSecret" -}}
{{- $own := get .root.Values.tls.secrets .side }}
{{- if $own }}{{ $own }}{{ else if .root.Values.tls.certManager.enabled }}{{ include "tailwater.fullname" .root }}-{{ .side }}{{ else }}
{{- fail (printf "tls.enabled needs tls.certManager.enabled or tls.secrets.%s" .side) }}{{ end }}
{{- end }}
