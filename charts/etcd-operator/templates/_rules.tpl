{{- define "etcd-operator.clusterRules" -}}
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdclusters
  - etcdbackupschedules
  verbs:
  - get
  - list
  - patch
  - watch
- apiGroups:
  - etcd.keelson.dev
  resources:
  - etcdmembers
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
  - etcdclusters/status
  - etcdmembers/status
  - etcdbackups/status
  - etcdbackupschedules/status
  verbs:
  - get
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
  - persistentvolumeclaims
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
  - services
  verbs:
  - create
  - get
  - patch
- apiGroups:
  - ''
  resources:
  - secrets
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
  - patch
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
{{- define "etcd-operator.leaderRules" -}}
- apiGroups:
  - coordination.k8s.io
  resources:
  - leases
  verbs:
  - create
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
