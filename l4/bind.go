package l4

import (
	"fmt"
	"slices"

	"ambassador/l4/bind"
)

// bind gives each configured listener its sockets: the existing ones or new ones.
func (s *Server) bind(cfg *Config) (all [][]*listener, fresh []*listener, err error) {
	for _, c := range cfg.Listeners {
		if _, err := askedIn(c); err != nil {
			return nil, nil, err
		}
	}
	wanted := make([]bind.Listener, len(cfg.Listeners))
	for i, c := range cfg.Listeners {
		wanted[i] = bind.Listener{Name: c.Name, Addresses: c.Addresses}
	}
	places, err := bind.Places(wanted, s.opts.Inherited)
	if err != nil {
		return nil, nil, err
	}
	b := binding{server: s, kept: map[string]*listener{}}
	b.sort(slices.Concat(places...))
	for i := range cfg.Listeners {
		c := &cfg.Listeners[i]
		sockets, err := b.sockets(c, places[i])
		if err != nil {
			b.revert()
			return nil, nil, fmt.Errorf("listener %s: %w", c.Name, err)
		}
		all = append(all, sockets)
	}
	return all, b.fresh, nil
}

// binding is the progress of bind.
type binding struct {
	server  *Server
	kept    map[string]*listener // by the key of their place
	leaving []bind.Socket        // sockets that the new configuration does not have
	fresh   []*listener
	undo    []func()
}

// sort tells the sockets that are kept from those that are closed.
func (b *binding) sort(places []bind.Place) {
	wanted := map[string]bool{}
	for _, p := range places {
		wanted[p.Key] = true
	}
	for _, l := range b.server.listeners {
		if wanted[l.key] && !l.isLost() {
			b.kept[l.key] = l
		} else if l.Addr().Network() == "tcp" {
			b.leaving = append(b.leaving, l)
		}
	}
}

// sockets returns the sockets of a listener. It leaves out an address that the host
// does not have, if another one is left.
func (b *binding) sockets(cfg *ListenerConfig, places []bind.Place) (out []*listener, err error) {
	var absent error
	for _, p := range places {
		l, err := b.socket(cfg, p)
		switch {
		case err == nil:
			out = append(out, l)
		case p.Optional && bind.IsAbsent(err):
			absent = err
		default:
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, absent
	}
	return out, nil
}

func (b *binding) socket(cfg *ListenerConfig, p bind.Place) (*listener, error) {
	l := b.kept[p.Key]
	if l == nil {
		l, err := b.server.listen(b.server.ctx, cfg, p, b.leaving)
		if err == nil {
			b.fresh = append(b.fresh, l)
		}
		return l, err
	}
	back, err := l.reguard(cfg)
	if err != nil {
		return nil, err
	}
	b.undo = append(b.undo, back)
	return l, checkPlaintext(l.Addr(), cfg)
}

// revert closes the new sockets, and gives the kept ones back their modes and owners.
func (b *binding) revert() {
	for _, l := range b.fresh {
		l.close()
	}
	for _, f := range b.undo {
		f()
	}
}
