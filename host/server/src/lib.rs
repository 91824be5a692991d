//! What the node serves: the kubelet's HTTPS API (10250) and health (10248). Only this room names axum.
