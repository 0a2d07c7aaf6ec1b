package handover

import (
	"encoding/binary"
	"errors"
)

const (
	// storeName is the name of our descriptor in the store of the service manager.
	storeName = "ambassador-sessions"
	// storeMagic begins the root of a store, whatever the version of the state in it is.
	storeMagic = "ambassador store 1"
	// numberSize is the size of a descriptor's number in a message, in bytes.
	numberSize = 4
)

// IsStore reports whether a socket that systemd has passed is the store of a process
// before, which Receive has read. The caller closes it.
func IsStore(name string) bool { return name == storeName }

// Number returns the number that a descriptor has in this process, which had the number
// old in the one before; -1 if it did not arrive.
func (r *Received) Number(old int) int {
	if r.number == nil {
		return old
	}
	if fd, ok := r.number[old]; ok {
		return fd
	}
	return -1
}

// storeHead is the text of the root.
func storeHead(sessions, descriptors int) []byte {
	b := binary.BigEndian.AppendUint32([]byte(storeMagic), uint32(sessions))
	return binary.BigEndian.AppendUint32(b, uint32(descriptors))
}

func readStoreHead(b []byte) (sessions, descriptors int, err error) {
	if len(b) != len(storeMagic)+2*numberSize || string(b[:len(storeMagic)]) != storeMagic {
		return 0, 0, errors.New("the store has another form, of another version of the program")
	}
	b = b[len(storeMagic):]
	return int(binary.BigEndian.Uint32(b)), int(binary.BigEndian.Uint32(b[numberSize:])), nil
}
