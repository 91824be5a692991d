//! Inputs to begin with: short, and each of a kind that gets far, so that a fuzzer need not find the formats by itself.

/// A SPDY control frame of version 3.
fn control(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(0) | u32::from(flags) << 24;
    [&[0x80, 3, 0, kind][..], &length.to_be_bytes(), body].concat()
}

/// A header block in a zlib stream that stores, as one that begins (`first`) or goes on.
fn block(first: bool, pairs: &[(&str, &str)]) -> Vec<u8> {
    let word = |number: usize| u32::try_from(number).unwrap_or(0).to_be_bytes();
    let mut text = word(pairs.len()).to_vec();
    for part in pairs.iter().flat_map(|(name, value)| [name, value]) {
        text.extend_from_slice(&word(part.len()));
        text.extend_from_slice(part.as_bytes());
    }
    let length = u16::try_from(text.len()).unwrap_or(0);
    let head: &[u8] = if first { &[0x78, 0x01] } else { &[] };
    [head, &[0], &length.to_le_bytes(), &(!length).to_le_bytes(), &text].concat()
}

fn open(first: bool, id: u8, pairs: &[(&str, &str)]) -> Vec<u8> {
    control(1, 0, &[&[0, 0, 0, id, 0, 0, 0, 0, 0, 0][..], &block(first, pairs)].concat())
}

fn data(id: u8, fin: bool, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap_or(0);
    [&[0, 0, 0, id, u8::from(fin), 0, 0, length][..], bytes].concat()
}

/// A WebSocket message of a client, under a mask of zeros.
fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).unwrap_or(0);
    let head: &[u8] = if length < 126 { &[0x80 | length] } else { &[0xfe, 0, length] };
    [&[0x80 | kind][..], head, &[0; 4], payload].concat()
}

pub(crate) fn headers() -> Vec<Vec<u8>> {
    vec![block(true, &[("streamtype", "stdin")]), block(true, &[("a", "b\0c"), ("port", "80"), ("requestid", "0")])]
}

pub(crate) fn spdy() -> Vec<Vec<u8>> {
    let streams =
        [open(true, 1, &[("streamtype", "error")]), open(false, 3, &[]), data(1, false, b"x"), data(3, true, b"")];
    let rest = [
        control(6, 0, &[0, 0, 0, 1]),
        control(9, 0, &[0, 0, 0, 1, 0, 0, 1, 0]),
        control(3, 0, &[0, 0, 0, 1, 0, 0, 0, 5]),
    ];
    let settings = control(4, 0, &[0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0xff, 0xff]);
    vec![streams.concat(), [streams.concat(), rest.concat()].concat(), [settings, control(7, 0, &[0; 8])].concat()]
}

pub(crate) fn command() -> Vec<Vec<u8>> {
    let all = ["error", "stdin", "stdout", "resize"];
    let opened: Vec<u8> = (0..all.len())
        .flat_map(|at| open(at == 0, u8::try_from(2 * at + 1).unwrap_or(1), &[("streamtype", all[at])]))
        .collect();
    let plain = [&[4][..], &opened, &data(3, true, b"input")].concat();
    let terminal =
        [&[4 | 8][..], &opened, &data(7, false, b"{\"Width\":80,\"Height\":24}\n"), &data(3, true, b"exit\n")];
    vec![plain, terminal.concat(), [&[1][..], &opened[..60]].concat()]
}

pub(crate) fn websocket() -> Vec<Vec<u8>> {
    let plain = [message(2, b"\0input"), message(9, b"ping"), message(2, b"\xff\0"), message(8, &[3, 232])].concat();
    let sizes = [message(2, b"\x04{\"Width\":80,\"Height\":24}"), message(2, b"\0exit\n")].concat();
    let text = [message(1, b"0aW5wdXQ="), message(1, b"0")].concat();
    vec![[&[4][..], &plain].concat(), [&[8 | 2][..], &sizes].concat(), [&[1][..], &text].concat()]
}

pub(crate) fn forward() -> Vec<Vec<u8>> {
    let request = [message(2, b"\0GET / HTTP/1.0\r\n\r\n"), message(2, b"\x02more"), message(8, b"")].concat();
    vec![[&[0][..], &request].concat(), [&[1][..], &message(1, b"0R0VU")].concat()]
}

pub(crate) fn tunnel() -> Vec<Vec<u8>> {
    let pair = |kind| [("streamtype", kind), ("port", "80"), ("requestid", "0")];
    let inner = [open(true, 1, &pair("error")), open(false, 3, &pair("data")), data(3, true, b"GET /")].concat();
    vec![message(2, &inner), inner.chunks(20).flat_map(|piece| message(2, piece)).collect()]
}

pub(crate) fn sizes() -> Vec<Vec<u8>> {
    vec![b"{\"Width\":80,\"Height\":24}\n{\"Width\":1".to_vec()]
}

pub(crate) fn upgrade() -> Vec<Vec<u8>> {
    let spdy = "connection:Upgrade\nupgrade:SPDY/3.1\nx-stream-protocol-version:v4.channel.k8s.io, v3.channel.k8s.io";
    let websocket = "connection:keep-alive, Upgrade\nupgrade:websocket\nsec-websocket-version:13\n\
                     sec-websocket-key:dGhlIHNhbXBsZSBub25jZQ==\nsec-websocket-protocol:";
    let protocols = ["v5.channel.k8s.io", "SPDY/3.1+portforward.k8s.io", "base64.channel.k8s.io"];
    let websockets = protocols.map(|protocol| format!("{websocket}{protocol}").into_bytes());
    [vec![spdy.as_bytes().to_vec()], websockets.to_vec()].concat()
}

pub(crate) fn query() -> Vec<Vec<u8>> {
    let all = [
        "follow=true&tailLines=10&timestamps=1&sinceSeconds=60&limitBytes=100",
        "sinceTime=2026-01-02T03%3A04%3A05Z&previous=true",
        "stream=Stderr",
        "command=sh&command=-c&command=echo+%22a%22&input=1&output=1&tty=1",
        "query=docker&query=%2Fsyslog&tailLines=5&boot=-1&pattern=a.*b&sinceTime=2026-01-02T03:04:05Z",
    ];
    all.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// What Docker makes of two outputs, and what it says itself.
const FRAMES: &[u8] = b"\x01\0\0\0\0\0\0\x03a\nb\x02\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x01c\x03\0\0\0\0\0\0\x01d";

pub(crate) fn log() -> Vec<Vec<u8>> {
    let dated = b"\x01\0\0\0\0\0\0\x052 a b\x01\0\0\0\0\0\0\x042 c\n";
    vec![
        [&[3][..], FRAMES].concat(),
        [&[0x40 | 2][..], dated].concat(),
        [&[0x80 | 5][..], b"a terminal's\r\n"].concat(),
    ]
}

pub(crate) fn frames() -> Vec<Vec<u8>> {
    [0xc0 | 1, 0x80 | 3, 0x40 | 9].map(|pick| [&[pick][..], FRAMES, FRAMES].concat()).to_vec()
}

pub(crate) fn manifest() -> Vec<Vec<u8>> {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {probe.longshore.dev/web.readiness: '{plugin: http, \
               config: {port: 80}, period: 200ms}'}}\nspec:\n  containers:\n  - name: web\n    image: nginx\n    ports: \
               [{containerPort: 80, hostPort: 8080}]\n    resources: {limits: {cpu: 500m, memory: 64Mi}}\n    volumeMounts: \
               [{name: v, mountPath: /v}]\n  volumes:\n  - name: v\n    configMap: {name: c, defaultMode: 0644}\n";
    let objects = "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}, data: {a: b}}\n---\napiVersion: v1\nkind: \
                   Secret\nmetadata: {name: s}\nstringData: {k: &x v, l: *x}\n";
    let list = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"},
        "spec":{"hostNetwork":true,"restartPolicy":"Never","initContainers":[{"name":"i","image":"x","restartPolicy":
        "Always"}],"containers":[{"name":"c","image":"y:1","livenessProbe":{"exec":{"command":["true"]}}}]}}]}"#;
    [pod, objects, list].map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) fn image() -> Vec<Vec<u8>> {
    let digest = format!("registry:5000/a/b:tag@sha256:{}", "0".repeat(64));
    vec![b"nginx".to_vec(), b"localhost/a:1".to_vec(), digest.into_bytes()]
}

pub(crate) fn quantity() -> Vec<Vec<u8>> {
    ["100m", "1.5Gi", "-3e2", "12E", "0.001", "1h2m3.5s", "200ms"].map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) fn providers() -> Vec<Vec<u8>> {
    let text = "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: p\n  apiVersion: \
                credentialprovider.kubelet.k8s.io/v1\n  matchImages: ['*.example.com:5000/a']\n  defaultCacheDuration: 1h\n  \
                args: [x]\n  env: [{name: A, value: b}]\n";
    vec![text.as_bytes().to_vec()]
}
