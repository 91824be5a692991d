//! SPDY/3.1 sessions and WebSocket channels over any byte stream, as kubectl and the API server speak them.
