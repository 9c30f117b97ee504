package shm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"ubcache/attrs"
)

// Messages go over a SOCK_SEQPACKET socket that each cache has in its runtime folder: one request of
// the client, one reply, in turn. The end of the connection is the end of everything that the
// client had there.
const (
	messageMagic     = "UBSP"
	messageHeadBytes = 64
	// MessageBytes is the largest message.
	MessageBytes = 1024
	// MessageFDs is how many descriptors can go along with one.
	MessageFDs = 4

	// SocketSuffix is what the sockets' names end with, after the name of the cache.
	SocketSuffix = ".direct"
)

// Kind says what a message asks.
type Kind uint16

// The kinds. A reply has the kind of what it answers.
const (
	// Hello comes first, with the memfd. With FlagRing the ring in it is served, and the reply comes
	// with the eventfd that wakes the server and the socket by which the server wakes the client.
	Hello Kind = iota + 1
	// List describes the device number Index of the cache, as Open does, but opens nothing. After
	// the last one there is ENOENT.
	List
	// OpenDevice opens the device with the name in Text, or, where that is empty, the one whose
	// block device's descriptor comes along. The first needs to be root or the user that the daemon
	// runs as; the second shows what it may do by how it could open the block device.
	OpenDevice
	// Query asks what the opened device Index supports: Payload has its capabilities.
	Query
)

// Flags of messages.
const (
	// FlagRing, of Hello: serve the ring.
	FlagRing = 1 << iota
	// FlagRegister, of OpenDevice: make the memory known to the block device, so that requests on
	// it bring their attributes along. In the reply: that has been done.
	FlagRegister
	// FlagReadOnly, in a reply: only reads are allowed.
	FlagReadOnly
	// FlagWriteOnly, in a reply: reads are not allowed.
	FlagWriteOnly
)

// Message is a request or a reply; which fields count depends on the kind.
type Message struct {
	Kind  Kind
	Errno unix.Errno // of a reply; Text says more
	Flags uint32
	// Index of the device: as it is listed, or, opened, as entries of the ring have it.
	Index uint32
	// Number of the device in results.
	Number attrs.Device
	// Block is the device's logical block, Max the longest entry of the ring, in bytes.
	Block, Max uint32
	// Size of the device in bytes.
	Size uint64
	// Dev is the number (dev_t) of the block device, 0 without one.
	Dev uint64
	// Text is a name or an explanation, or capabilities.
	Text string
}

// encode writes the message to the start of b, which has room for any.
func (m *Message) encode(b []byte) int {
	text := m.Text[:min(len(m.Text), MessageBytes-messageHeadBytes)]
	clear(b[:messageHeadBytes])
	copy(b, messageMagic)
	le.PutUint16(b[4:], Version)
	le.PutUint16(b[6:], uint16(m.Kind))
	le.PutUint32(b[8:], uint32(m.Errno))
	le.PutUint32(b[12:], m.Flags)
	le.PutUint32(b[16:], m.Index)
	le.PutUint32(b[20:], uint32(m.Number))
	le.PutUint32(b[24:], m.Block)
	le.PutUint32(b[28:], m.Max)
	le.PutUint64(b[32:], m.Size)
	le.PutUint64(b[40:], m.Dev)
	le.PutUint32(b[48:], uint32(len(text)))
	return messageHeadBytes + copy(b[messageHeadBytes:], text)
}

// ErrMessage: the other side does not speak this protocol, or another version of it.
var ErrMessage = errors.New("not a message of this protocol")

func (m *Message) decode(b []byte) error {
	if len(b) < messageHeadBytes || string(b[:4]) != messageMagic {
		return ErrMessage
	}
	if v := le.Uint16(b[4:]); v != Version {
		return fmt.Errorf("%w: version %d, this is %d", ErrMessage, v, Version)
	}
	if le.Uint32(b[48:]) != uint32(len(b)-messageHeadBytes) {
		return fmt.Errorf("%w: its length is wrong", ErrMessage)
	}
	for _, c := range b[52:messageHeadBytes] {
		if c != 0 {
			return fmt.Errorf("%w: reserved bytes are set", ErrMessage)
		}
	}
	*m = Message{
		Kind: Kind(le.Uint16(b[6:])), Errno: unix.Errno(le.Uint32(b[8:])), Flags: le.Uint32(b[12:]),
		Index: le.Uint32(b[16:]), Number: attrs.Device(le.Uint32(b[20:])), Block: le.Uint32(b[24:]),
		Max: le.Uint32(b[28:]), Size: le.Uint64(b[32:]), Dev: le.Uint64(b[40:]),
		Text: string(b[messageHeadBytes:]),
	}
	return nil
}

// Err is the error that a reply reports.
func (m *Message) Err() error {
	if m.Errno == 0 {
		return nil
	}
	if m.Text == "" {
		return m.Errno
	}
	// What the daemon says may end with its errno.
	text := strings.TrimSuffix(strings.TrimSpace(m.Text), ": "+m.Errno.Error())
	return fmt.Errorf("%s: %w", text, m.Errno)
}

// Send sends a message with descriptors, which stay the caller's.
func (m *Message) Send(c *net.UnixConn, fds ...int) error {
	var b [MessageBytes]byte
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err := c.WriteMsgUnix(b[:m.encode(b[:])], rights, nil)
	return err
}

// Receive takes a message; the descriptors that came along are the caller's to close. At the end of
// the connection it returns an error.
func (m *Message) Receive(c *net.UnixConn) (fds []int, err error) {
	var b [MessageBytes + 1]byte
	oob := make([]byte, unix.CmsgSpace(4*MessageFDs))
	n, nOOB, _, _, err := c.ReadMsgUnix(b[:], oob)
	if err != nil {
		return nil, err
	}
	fds = descriptors(oob[:nOOB])
	if n == 0 {
		err = os.ErrClosed
	} else {
		err = m.decode(b[:n])
	}
	if err != nil {
		CloseAll(fds)
		return nil, err
	}
	return fds, nil
}

// descriptors are those in control messages.
func descriptors(oob []byte) (fds []int) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range list {
		if got, err := unix.ParseUnixRights(&list[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Capability is what a device says of one attribute.
type Capability struct {
	ID attrs.ID
	// Supported says whether it acts on the attribute. One that is not in the list it does not know.
	Supported bool
}

// capabilityBytes is the size of one in a message or in the data of a query.
const capabilityBytes = 4

// AppendCapabilities encodes a list.
func AppendCapabilities(b []byte, list []Capability) []byte {
	for _, c := range list {
		b = le.AppendUint16(b, uint16(c.ID))
		if c.Supported {
			b = append(b, 1, 0)
		} else {
			b = append(b, 0, 0)
		}
	}
	return b
}

// ParseCapabilities decodes a list.
func ParseCapabilities(b []byte) (list []Capability) {
	for ; len(b) >= capabilityBytes; b = b[capabilityBytes:] {
		list = append(list, Capability{attrs.ID(le.Uint16(b)), b[2] == 1})
	}
	return list
}
