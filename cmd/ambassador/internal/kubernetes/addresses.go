package kubernetes

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"ambassador/l4/lookup"
)

// maxAddresses bounds the addresses of one Service that are used.
const maxAddresses = 4096

// service is what is read of a Service.
type service struct {
	Metadata metadata
	Spec     struct {
		Type, ExternalName string
		IPFamilies         []string
		Ports              []servicePort
	}
}

type servicePort struct {
	Name, Protocol string
	Port           uint16
}

func (s *service) meta() *metadata { return &s.Metadata }

// endpointSlice is what is read of an EndpointSlice.
type endpointSlice struct {
	Metadata    metadata
	AddressType string
	Endpoints   []endpoint
	Ports       []slicePort // nil: every port
}

type slicePort struct {
	Name, Protocol string
	Port           *uint16 // nil: every port
}

type endpoint struct {
	Addresses  []string
	Conditions struct{ Ready, Serving, Terminating *bool }
	Hints      struct{ ForZones, ForNodes []struct{ Name string } }
}

func (s *endpointSlice) meta() *metadata { return &s.Metadata }

// here is where this process runs. Empty: unknown.
type here struct{ zone, node string }

// The distances of addresses.
const (
	onNode = iota
	inZone
	elsewhere
)

// distance follows the hints of an endpoint. Without hints for where we are, all
// addresses are equally far.
func (h here) distance(e *endpoint) int {
	names := func(all []struct{ Name string }, name string) bool {
		return name != "" && slices.Contains(all, struct{ Name string }{name})
	}
	switch {
	case names(e.Hints.ForNodes, h.node):
		return onNode
	case names(e.Hints.ForZones, h.zone):
		return inZone
	}
	return elsewhere
}

// isReady reports whether an endpoint takes new sessions. A terminating one does not.
func (e *endpoint) isReady() bool {
	c := &e.Conditions
	return (c.Ready == nil || *c.Ready) && (c.Terminating == nil || !*c.Terminating)
}

// isServing reports whether an endpoint still answers while it terminates.
func (e *endpoint) isServing() bool {
	c := &e.Conditions
	return c.Serving != nil && *c.Serving && c.Terminating != nil && *c.Terminating
}

// addresses returns the addresses of a port that take new sessions: those of the ready
// endpoints and, as in kube-proxy, if there are none those that still answer while they
// terminate. If there is none, the error says why. Svc is nil if it does not exist.
func addresses(ref Service, svc *service, all map[string]*endpointSlice, h here) ([]lookup.Discovered, error) {
	port, err := ref.portOf(svc)
	if err != nil {
		return nil, err
	}
	var ready, serving []lookup.Discovered
	seen, served := 0, false
	for _, slice := range all {
		number, ok := port.in(slice)
		if !ok {
			continue
		}
		served = true
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			addr, ok := e.address()
			if !ok {
				continue
			}
			seen++
			d := lookup.Discovered{Addr: netip.AddrPortFrom(addr, number), Distance: h.distance(e), Other: addr.Is4() == svc.prefersIPv6()}
			switch {
			case e.isReady():
				ready = append(ready, d)
			case e.isServing():
				serving = append(serving, d)
			}
		}
	}
	if len(ready) == 0 {
		ready = serving
	}
	if len(ready) > 0 {
		return distinct(ready), nil
	}
	return nil, ref.without(len(all), seen, served)
}

// without says why there is no address.
func (s Service) without(slices, seen int, served bool) error {
	switch {
	case slices == 0:
		return fmt.Errorf("service %s/%s has no EndpointSlice: does its selector match any pod?", s.Namespace, s.Name)
	case !served:
		return fmt.Errorf("no EndpointSlice of service %s/%s has port %s: does its targetPort name a port of the pods?", s.Namespace, s.Name, s.Port)
	case seen == 0:
		return fmt.Errorf("service %s/%s has no endpoint: does its selector match any pod?", s.Namespace, s.Name)
	}
	return fmt.Errorf("none of the %d endpoints of service %s/%s is ready", seen, s.Namespace, s.Name)
}

// distinct returns the addresses in a fixed order, each once: an endpoint may be in two
// EndpointSlices for a while.
func distinct(all []lookup.Discovered) []lookup.Discovered {
	slices.SortFunc(all, func(a, b lookup.Discovered) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Distance, b.Distance))
	})
	all = slices.CompactFunc(all, func(a, b lookup.Discovered) bool { return a.Addr == b.Addr })
	slices.SortStableFunc(all, func(a, b lookup.Discovered) int { return cmp.Compare(a.Distance, b.Distance) })
	return all[:min(len(all), maxAddresses)]
}

// address returns the endpoint's address. Of several, which all lead to the same pod, it
// is the first.
func (e *endpoint) address() (netip.Addr, bool) {
	if len(e.Addresses) == 0 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(e.Addresses[0])
	addr = addr.Unmap()
	return addr, err == nil && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsMulticast()
}

// prefersIPv6 reports whether the Service prefers IPv6.
func (s *service) prefersIPv6() bool {
	return len(s.Spec.IPFamilies) > 0 && s.Spec.IPFamilies[0] == "IPv6"
}

// chosenPort is a port of a Service as its EndpointSlices have it.
type chosenPort struct {
	name   string
	number uint16 // where an EndpointSlice has every port; 0: unknown
}

// portOf finds the port in the Service.
func (s Service) portOf(svc *service) (chosenPort, error) {
	number, byNumber := portNumber(s.Port)
	switch {
	case svc == nil:
		return chosenPort{}, fmt.Errorf("service %s/%s does not exist", s.Namespace, s.Name)
	case svc.Spec.Type == "ExternalName":
		return chosenPort{}, fmt.Errorf("service %s/%s is an alias of %q, and has no endpoints; write that name and the port as the endpoint instead", s.Namespace, s.Name, printable(svc.Spec.ExternalName, 253))
	case len(svc.Spec.Ports) == 0 && byNumber: // a headless Service need not list its ports
		return chosenPort{number: number}, nil
	}
	for _, p := range svc.Spec.Ports {
		if p.isTCP() && (byNumber && p.Port == number || !byNumber && p.Name == s.Port) {
			return chosenPort{p.Name, p.Port}, nil
		}
	}
	return chosenPort{}, errors.New(s.noPort(svc))
}

// noPort says which ports there are.
func (s Service) noPort(svc *service) string {
	var have []string
	for _, p := range svc.Spec.Ports {
		switch {
		case !p.isTCP() || len(have) == 20:
		case p.Name == "":
			have = append(have, fmt.Sprint(p.Port))
		default:
			have = append(have, fmt.Sprintf("%d (%s)", p.Port, printable(p.Name, 63)))
		}
	}
	if len(have) == 0 {
		return fmt.Sprintf("service %s/%s has no TCP port %s, and no other", s.Namespace, s.Name, s.Port)
	}
	return fmt.Sprintf("service %s/%s has no TCP port %s; it has %s", s.Namespace, s.Name, s.Port, strings.Join(have, ", "))
}

func (p servicePort) isTCP() bool { return p.Protocol == "" || p.Protocol == "TCP" }

// in finds the port in an EndpointSlice of IP addresses.
func (p chosenPort) in(s *endpointSlice) (uint16, bool) {
	if s.AddressType != "IPv4" && s.AddressType != "IPv6" {
		return 0, false
	}
	if len(s.Ports) == 0 {
		return p.number, p.number != 0
	}
	for _, have := range s.Ports {
		if have.Name != p.name || have.Protocol != "" && have.Protocol != "TCP" {
			continue
		}
		if have.Port == nil {
			return p.number, p.number != 0
		}
		return *have.Port, *have.Port != 0
	}
	return 0, false
}
