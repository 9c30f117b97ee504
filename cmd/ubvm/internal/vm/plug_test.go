package vm

import (
	"bufio"
	"encoding/json"
	"net"
	"strings"
	"testing"
)

// fakeQEMU answers commands; before the answer to device_del comes the event, as it may from QEMU.
func fakeQEMU(conn net.Conn, commands chan<- string) {
	defer conn.Close()
	say := func(text string) { _, _ = conn.Write([]byte(text + "\n")) }
	say(`{"QMP": {"version": {}}}`)
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var c struct {
			Execute   string         `json:"execute"`
			Arguments map[string]any `json:"arguments"`
		}
		if json.Unmarshal(lines.Bytes(), &c) != nil {
			return
		}
		id, _ := c.Arguments["id"].(string)
		commands <- c.Execute + " " + id
		switch {
		case c.Execute == "device_add" && id == "disk-b":
			say(`{"error": {"class": "GenericError", "desc": "no such node"}}`)
			continue
		case c.Execute == "device_del":
			say(`{"event": "DEVICE_DELETED", "data": {"path": "/machine/x"}}`)
			say(`{"event": "DEVICE_DELETED", "data": {"device": "` + id + `"}}`)
		}
		say(`{"return": {}}`)
	}
}

func TestPlugger(t *testing.T) {
	ours, theirs := net.Pipe()
	commands := make(chan string, 10)
	go fakeQEMU(theirs, commands)
	q, err := newQMP(ours)
	if err != nil {
		t.Fatal(err)
	}
	p := &plugger{qmp: q, run: &run{disks: []Disk{
		{Name: "a", SCSI: true, SectorBytes: 512}, {Name: "b", SCSI: true}, {Name: "c"},
	}}}
	for line, want := range map[string]string{
		"plug b": "no such node", "unplug c": "no SCSI disk", "unplug": "no SCSI disk", "shake a": "neither",
	} {
		if err := p.do(line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected %q", line, err, want)
		}
	}
	for _, line := range []string{"unplug a", "plug a"} {
		if err := p.do(line); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
	ours.Close()
	close(commands)
	var got []string
	for c := range commands {
		got = append(got, c)
	}
	all := strings.Join(got, ", ")
	if !strings.HasSuffix(all, "device_del disk-a, device_add disk-a") {
		t.Errorf("QEMU was told %s", all)
	}
}
