{{- define "etcd-operator.clusterRules" -}}
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdclusters
  verbs:
  - get
  - list
  - patch
  - watch
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdmembers
  verbs:
  - create
  - delete
  - get
  - list
  - patch
  - watch
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdbackups
  verbs:
  - create
  - delete
  - get
  - list
  - patch
  - watch
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdbackupschedules
  verbs:
  - get
  - list
  - watch
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdclusters/status
  - etcdmembers/status
  - etcdbackups/status
  - etcdbackupschedules/status
  verbs:
  - patch
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdclusters/finalizers
  - etcdmembers/finalizers
  - etcdbackups/finalizers
  verbs:
  - update
- apiGroups:
  - ''
  resources:
  - pods
  verbs:
  - create
  - delete
  - get
  - list
  - patch
  - watch
- apiGroups:
  - ''
  resources:
  - persistentvolumeclaims
  verbs:
  - create
  - delete
  - list
  - watch
- apiGroups:
  - ''
  resources:
  - services
  verbs:
  - create
  - get
  - patch
- apiGroups:
  - batch
  resources:
  - jobs
  verbs:
  - create
  - delete
  - get
  - list
  - watch
- apiGroups:
  - policy
  resources:
  - poddisruptionbudgets
  verbs:
  - create
  - delete
  - get
  - patch
- apiGroups:
  - events.k8s.io
  resources:
  - events
  verbs:
  - create
  - patch
{{- end }}
{{- define "etcd-operator.secretRules" -}}
- apiGroups:
  - ''
  resources:
  - secrets
  verbs:
  - create
  - get
  - patch
{{- end }}
{{- define "etcd-operator.leaderRules" -}}
- apiGroups:
  - coordination.k8s.io
  resources:
  - leases
  verbs:
  - create
- apiGroups:
  - coordination.k8s.io
  resourceNames:
  - '{{ include "etcd-operator.name" . }}'
  resources:
  - leases
  verbs:
  - get
  - update
{{- end }}
{{- define "etcd-operator.nodeRules" -}}
- apiGroups:
  - ''
  resources:
  - nodes
  - persistentvolumes
  verbs:
  - list
{{- end }}
