//go:build !linux

package relay

import (
	"errors"
	"net"
	"net/netip"
)

// Carries is always false here.
func (e *Engine) Carries() bool { return false }

func canFreeze(Session) bool { return false }

// CanCarry is always false here: sessions end with the program.
func (e *Engine) CanCarry(Session) bool { return false }

// Freeze always returns FrozenUnable here.
func (e *Engine) Freeze(Session) (Carried, Frozen) { return Carried{}, FrozenUnable }

// Thaw does nothing here.
func (e *Engine) Thaw(Session) {}

// Adopt is always an error here.
func (e *Engine) Adopt(*Carried, Owner) (Session, error) {
	return nil, errors.New("only Linux can carry sessions over")
}

// AdoptSocket is never called here.
func (e *Engine) AdoptSocket(int, netip.AddrPort, *net.KeepAliveConfig) net.Conn { return nil }
