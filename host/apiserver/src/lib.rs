//! The Kubernetes API that we call: joining, the node, pods, what pods use. Only this room names kube.
