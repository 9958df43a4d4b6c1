{{/* Fails where a pod would be killed before it has drained. Takes name and pod (values of a tier or the members). */}}
{{- define "tailwater.checkGrace" -}}
{{- $least := add (int .pod.preStopSleepSeconds) (int .pod.drainGraceSeconds) 5 }}
{{- if lt (int .pod.terminationGracePeriodSeconds) (int $least) }}
{{- fail (printf "%s.terminationGracePeriodSeconds must be at least %d: preStopSleepSeconds, drainGraceSeconds, and 5" .name (int $least)) }}
{{- end }}
{{- end }}

{{/* Flags that every node has. Takes root and pod. */}}
{{- define "tailwater.commonArgs" -}}
- --listen-client-urls={{ include "tailwater.scheme" .root }}://0.0.0.0:2379
{{ include "tailwater.quietArgs" . }}
{{- end }}

{{/* The same without clients. */}}
{{- define "tailwater.quietArgs" -}}
- --listen-metrics-urls=http://0.0.0.0:2381
- --watch-progress-notify-interval={{ .pod.progressInterval }}
- --drain-grace={{ .pod.drainGraceSeconds }}s
- --metrics={{ .pod.metrics }}
- --log-level={{ .pod.logLevel }}
{{- if .root.Values.tls.enabled }}
- --cert-file=/etc/tailwater/tls/server/tls.crt
- --key-file=/etc/tailwater/tls/server/tls.key
- --trusted-ca-file=/etc/tailwater/tls/server/ca.crt
- --client-cert-auth=true
- --peer-cert-file=/etc/tailwater/tls/peer/tls.crt
- --peer-key-file=/etc/tailwater/tls/peer/tls.key
- --peer-trusted-ca-file=/etc/tailwater/tls/peer/ca.crt
- --peer-client-cert-auth=true
# Fanouts come from addresses that no certificate can name before.
- --peer-skip-client-san-verification=true
{{- end }}
{{- end }}

{{- define "tailwater.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}

{{- define "tailwater.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* What all pods have. Takes root. */}}
{{- define "tailwater.podSecurity" -}}
serviceAccountName: {{ include "tailwater.serviceAccountName" .root }}
automountServiceAccountToken: false
# Variables named after Services must not be taken for flags.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a node's pod may run. Takes root, component and pod. */}}
{{- define "tailwater.placement" -}}
{{- $labels := include "tailwater.selector" . }}
{{- with .pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .pod.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pod.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if or .pod.spread.node .pod.spread.zone }}
topologySpreadConstraints:
{{- range $key, $strict := dict "kubernetes.io/hostname" .pod.spread.node "topology.kubernetes.io/zone" .pod.spread.zone }}
{{- if $strict }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: {{ $strict }}
  labelSelector:
    matchLabels: {{- $labels | nindent 6 }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Takes root. */}}
{{- define "tailwater.tlsMounts" -}}
{{- if .root.Values.tls.enabled }}
- {name: tls-server, mountPath: /etc/tailwater/tls/server, readOnly: true}
- {name: tls-peer, mountPath: /etc/tailwater/tls/peer, readOnly: true}
{{- end }}
{{- end }}

{{/* Takes root. */}}
{{- define "tailwater.tlsVolumes" -}}
{{- if .root.Values.tls.enabled }}
{{- range $side := list "server" "peer" }}
- name: tls-{{ $side }}
  secret:
    secretName: {{ include "tailwater.tlsSecret" (dict "root" $.root "side" $side) }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- end }}

{{/* Flags of this program's own clients, and what they need. Takes root. */}}
{{- define "tailwater.clientTLSArgs" -}}
{{- if .root.Values.tls.enabled }}
- --cacert=/etc/tailwater/tls/client/ca.crt
- --cert=/etc/tailwater/tls/client/tls.crt
- --key=/etc/tailwater/tls/client/tls.key
{{- end }}
{{- end }}

{{- define "tailwater.clientTLSMount" -}}
{{- if .root.Values.tls.enabled }}
- {name: tls-client, mountPath: /etc/tailwater/tls/client, readOnly: true}
{{- end }}
{{- end }}

{{- define "tailwater.clientTLSVolume" -}}
{{- if .root.Values.tls.enabled }}
- name: tls-client
  secret:
    secretName: {{ include "tailwater.tlsSecret" (dict "root" .root "side" "client") }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* Alive is who answers; a liveness probe that asked for a leader would restart the members of a group without one. */}}
{{- define "tailwater.aliveProbes" -}}
startupProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 300
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end }}
