// Package kubernetes follows objects of a Kubernetes API server: the endpoints of a
// Service (EndpointSlice, discovery.k8s.io/v1) for upstreams, and a Secret with a
// certificate for identities.
//
// A Client finds the API server as every program in a pod does: by KUBERNETES_SERVICE_HOST
// and KUBERNETES_SERVICE_PORT, with token and ca.crt of the service account. It reads
// these files anew for each request, because the kubelet replaces them. It needs nothing
// but net/http: the official client would add 19 MB to the binary.
//
// A feed lists its objects, and watches them from there on. A watch that ends goes on
// where it was. When the server has forgotten that position (410 Gone), the feed lists
// again. The file watch.go has the feed, and events.go what is read of the server.
// addresses.go decides which addresses of a Service take new sessions; it is pure.
// discovery.go and secret.go join these for upstreams and identities.
//
// # Promised
//
//   - What was learned last stays while the API server cannot be reached, or refuses.
//   - Every wait and every answer has a bound; pauses between requests grow and have
//     jitter.
//   - The token is sent to the API server alone: redirects are not followed.
package kubernetes
