package vm

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

const (
	// plugPort is the virtio-serial port on which the guest asks for disks to be unplugged and plugged
	// in again: a line "unplug NAME" or "plug NAME", answered by "ok" or by what went wrong.
	plugPort = "ubvm.plug"
	scsiBus  = "scsi"
	// unplugTime is how long QEMU may take to be done with a disk.
	unplugTime = 30 * time.Second
)

// scsiArgs are QEMU's options for a disk that can be unplugged. What is below it, the block node, stays
// when the disk goes.
func (d *Disk) scsiArgs() []string {
	node, device := d.scsiNode(), d.scsiDevice()
	return []string{"-blockdev", mustJSON(node), "-device", mustJSON(device)}
}

func (d *Disk) scsiNode() map[string]any {
	discard := "unmap"
	if d.NoDiscard {
		discard = "ignore"
	}
	return map[string]any{
		"driver": "raw", "node-name": d.Name, "discard": discard,
		"file": map[string]any{"driver": "file", "filename": d.Path, "discard": discard, "aio": "threads"},
	}
}

func (d *Disk) scsiDevice() map[string]any {
	return map[string]any{
		"driver": "scsi-hd", "bus": scsiBus + ".0", "drive": d.Name, "id": d.deviceID(), "serial": d.Name,
		"logical_block_size": d.SectorBytes, "physical_block_size": max(4096, d.SectorBytes),
		"rotation_rate": 1, // not rotating
	}
}

func (d *Disk) deviceID() string { return "disk-" + d.Name }

func mustJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// plugger does what a guest asks for on its port, one request after the other.
type plugger struct {
	*run
	listener net.Listener
	done     chan struct{}
	qmp      *qmp // nil until it is needed
}

func newPlugger(r *run) (*plugger, error) {
	os.Remove(r.path("plug"))
	listener, err := net.Listen("unix", r.path("plug"))
	if err != nil {
		return nil, fmt.Errorf("listen for guest: %w", err)
	}
	p := &plugger{run: r, listener: listener, done: make(chan struct{})}
	go func() { defer close(p.done); p.serve() }()
	return p, nil
}

// close ends it, once QEMU has ended.
func (p *plugger) close() {
	p.listener.Close()
	<-p.done
}

func (p *plugger) serve() {
	conn, err := p.listener.Accept()
	if err != nil {
		return
	}
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		answer := "ok"
		if err := p.do(lines.Text()); err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			break
		}
	}
	if p.qmp != nil {
		p.qmp.conn.Close()
	}
}

func (p *plugger) do(line string) (err error) {
	verb, name, _ := strings.Cut(line, " ")
	d, err := p.disk(name)
	if err != nil {
		return err
	}
	if p.qmp == nil {
		if p.qmp, err = dialQMP(p.path("qmp")); err != nil {
			return err
		}
	}
	switch verb {
	case "unplug":
		if err := p.qmp.execute("device_del", map[string]any{"id": d.deviceID()}); err != nil {
			return err
		}
		return p.qmp.wait("DEVICE_DELETED", d.deviceID())
	case "plug":
		return p.qmp.execute("device_add", d.scsiDevice())
	}
	return fmt.Errorf("%q is neither plug nor unplug", verb)
}

func (p *plugger) disk(name string) (*Disk, error) {
	for i := range p.disks {
		if d := &p.disks[i]; d.Name == name && d.SCSI {
			return d, nil
		}
	}
	return nil, fmt.Errorf("no SCSI disk %q (ubvm --disk NAME,scsi makes one)", name)
}

// qmp is a connection to QEMU's monitor.
type qmp struct {
	conn   net.Conn
	dec    *json.Decoder
	events []qmpMessage
}

type qmpMessage struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
	Data  struct {
		Device string `json:"device"`
	} `json:"data"`
}

func dialQMP(path string) (*qmp, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU's monitor: %w", err)
	}
	return newQMP(conn)
}

func newQMP(conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, dec: json.NewDecoder(conn)}
	var greeting json.RawMessage
	err := q.dec.Decode(&greeting)
	if err == nil {
		err = q.execute("qmp_capabilities", nil)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("greet QEMU's monitor: %w", err)
	}
	return q, nil
}

func (q *qmp) execute(command string, arguments map[string]any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if _, err := fmt.Fprintln(q.conn, mustJSON(request)); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		m, err := q.next()
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", command, err)
		case m.Event != "":
			q.events = append(q.events, m)
		case m.Error != nil:
			return fmt.Errorf("%s: %s", command, m.Error.Desc)
		default:
			return nil
		}
	}
}

// wait waits for an event of a device, which may have come already.
func (q *qmp) wait(event, device string) error {
	for {
		for i, m := range q.events {
			if m.Event == event && m.Data.Device == device {
				q.events = append(q.events[:i], q.events[i+1:]...)
				return nil
			}
		}
		m, err := q.next()
		if err != nil {
			return fmt.Errorf("wait for %s of %s: %w", event, device, err)
		}
		if m.Event != "" {
			q.events = append(q.events, m)
		}
	}
}

var errQMP = errors.New("QEMU's monitor does not answer")

func (q *qmp) next() (m qmpMessage, err error) {
	if err := q.conn.SetReadDeadline(time.Now().Add(unplugTime)); err != nil {
		return m, err
	}
	if err := q.dec.Decode(&m); err != nil {
		return m, fmt.Errorf("%w: %w", errQMP, err)
	}
	return m, nil
}
