// The process that holds a pod's namespaces; see main.go. No dependencies.
module keelson.dev/e2e/peers/pause

go 1.26.0
