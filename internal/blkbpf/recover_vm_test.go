//go:build vm

package blkbpf

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"ubcache/internal/vmtest"
	"ubcache/ublk"
)

// envServer makes the test binary a server that takes requests and answers none, until it is killed.
const envServer = "BLKBPF_TEST_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(envServer) == "" {
		os.Exit(m.Run())
	}
	dev, err := ublk.Create(ramOptions())
	if err == nil {
		d := &ramDisk{Device: dev, mem: make([]byte, ramBytes)}
		err = dev.Start(d.handler)
		d.hold.Store(true)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
	fmt.Println(dev.ID())
	select {}
}

// TestReissue: what a killed server has not answered is issued again to its successor, which learns of
// it what its issuer said, although it is the successor that issues it now.
func TestReissue(t *testing.T) {
	vmtest.Limit(t, 3*time.Minute)
	src, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	server := exec.Command("/proc/self/exe")
	server.Env, server.Stderr = append(os.Environ(), envServer+"=1"), os.Stderr
	out, err := server.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	client := exec.Command("ubcache", "run", "--hint", "bypass", "dd",
		fmt.Sprintf("if=/dev/ublkb%d", id), "of=/dev/null", "bs=4k", "count=1", "skip=777", "iflag=direct")
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	vmtest.Wait(t, time.Minute, "a request at the server", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/sys/block/ublkb%d/inflight", id))
		return err == nil && strings.Fields(string(b))[0] == "1"
	})
	if err := server.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = server.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	dev, err := ublk.Recover(ctx, id, ublk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := serve(t, dev, src)
	if err := client.Wait(); err != nil {
		t.Error(err)
	}
	for _, n := range d.take() {
		if n.sector != 777*8 {
			continue
		}
		if got := attributes(n.Event); !n.found || got != "hint=bypass" || !n.Kernel {
			t.Errorf("found %t, %q, %+v", n.found, got, n.Event)
		}
		return
	}
	t.Error("the request was not issued again")
}
