package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Bounds of what is read of the server. An object in etcd has at most 1.5 MiB.
const (
	maxList    = 32 << 20
	maxEvent   = 8 << 20
	maxObjects = 1000
	maxHeld    = maxList // the sum of the objects of a watch, as they were read
)

// metadata is that of every object.
type metadata struct {
	Name, ResourceVersion string

	size int // bytes of the object as it was read
}

// object is what a feed follows.
type object interface{ meta() *metadata }

// event is one event of a watch.
type event struct {
	Type   string
	Object json.RawMessage
}

// allowance reads at most left bytes. The reader of events sets it anew for each.
type allowance struct {
	from io.Reader
	left int
}

var errTooLarge = errors.New("an answer of the API server is larger than the most that is read")

func (a *allowance) Read(b []byte) (int, error) {
	if a.left <= 0 {
		return 0, errTooLarge
	}
	n, err := a.from.Read(b[:min(len(b), a.left)])
	a.left -= n
	return n, err
}

// readEvents calls each with every event of a watch, until the stream ends or each
// returns an error. The error is io.EOF if the stream ended between two events.
func readEvents(body io.Reader, each func(event) error) error {
	bounded := &allowance{from: body}
	decoder := json.NewDecoder(bounded)
	for {
		bounded.left = maxEvent
		var e event
		if err := decoder.Decode(&e); err != nil {
			return notJSON(err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// errGarbage is wrapped by the error of an answer that is not what the API says.
var errGarbage = errors.New("the API server's answer cannot be read")

// notJSON wraps errors of the syntax with errGarbage; others are those of the connection.
func notJSON(err error) error {
	var (
		syntax *json.SyntaxError
		kind   *json.UnmarshalTypeError
	)
	if errors.As(err, &syntax) || errors.As(err, &kind) || errors.Is(err, errTooLarge) {
		return fmt.Errorf("%w: %w", errGarbage, err)
	}
	return err
}

// readList reads a list of objects, and the position from which to watch them.
func readList[T object](body io.Reader) (all map[string]T, version string, err error) {
	var list struct {
		Metadata metadata
		Items    []json.RawMessage
	}
	if err := json.NewDecoder(&allowance{body, maxList}).Decode(&list); err != nil {
		return nil, "", notJSON(err)
	}
	if list.Metadata.ResourceVersion == "" {
		return nil, "", fmt.Errorf("%w: the list has no resourceVersion", errGarbage)
	}
	all = map[string]T{}
	for _, item := range list.Items {
		if len(all) == maxObjects {
			return nil, "", fmt.Errorf("%w: the list has more than %d objects", errGarbage, maxObjects)
		}
		o, err := readObject[T](item)
		if err != nil {
			return nil, "", err
		}
		all[o.meta().Name] = o
	}
	return all, list.Metadata.ResourceVersion, nil
}

// readObject reads one object, which has a name.
func readObject[T object](text []byte) (T, error) {
	var o *T
	if err := json.Unmarshal(text, &o); err != nil {
		return *new(T), fmt.Errorf("%w: %w", errGarbage, err)
	}
	if o == nil || (*o).meta().Name == "" {
		return *new(T), fmt.Errorf("%w: an object has no name", errGarbage)
	}
	(*o).meta().size = len(text)
	return *o, nil
}

// apply changes all as one event says, and returns the position after it.
func apply[T object](all map[string]T, e event) (version string, err error) {
	switch e.Type {
	case "ERROR":
		return "", readError(e.Object)
	case "BOOKMARK":
		var o struct{ Metadata metadata }
		if err := json.Unmarshal(e.Object, &o); err != nil {
			return "", fmt.Errorf("%w: %w", errGarbage, err)
		}
		return o.Metadata.ResourceVersion, nil
	case "ADDED", "MODIFIED", "DELETED":
	default:
		return "", fmt.Errorf("%w: unknown event %q", errGarbage, printable(e.Type, 40))
	}
	o, err := readObject[T](e.Object)
	if err != nil {
		return "", err
	}
	name := o.meta().Name
	if e.Type == "DELETED" {
		delete(all, name)
	} else if all[name] = o; len(all) > maxObjects || sizeOf(all) > maxHeld {
		return "", fmt.Errorf("%w: there are more than %d objects, or they have more than %d MiB", errGarbage, maxObjects, maxHeld>>20)
	}
	return o.meta().ResourceVersion, nil
}

// readError reads the Status of an ERROR event.
func readError(text []byte) error {
	var status struct{ Code int }
	if err := json.Unmarshal(text, &status); err != nil {
		return fmt.Errorf("%w: %w", errGarbage, err)
	}
	return &statusError{code: status.Code, message: messageOf(text)}
}

// sizeOf returns the bytes of all objects as they were read.
func sizeOf[T object](all map[string]T) (sum int) {
	for _, o := range all {
		sum += o.meta().size
	}
	return sum
}
