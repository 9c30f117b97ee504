package sys

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const (
	goldenFile = "../../testdata/abi.golden"
	generator  = "../../testdata/abi.c"
)

// structs are the header's structures with our fields in the header's order; the fields' names in
// the header come from abi.golden.
var structs = map[string]any{
	"ublksrv_ctrl_cmd":      CtrlCmd{},
	"ublksrv_ctrl_dev_info": DevInfo{},
	"ublksrv_io_desc":       IODesc{},
	"ublksrv_io_cmd":        IOCmd{},
	"ublk_shmem_buf_reg":    ShmemBufReg{},
	"ublk_param_basic":      Basic{},
	"ublk_param_discard":    Discard{},
	"ublk_param_devt":       Devt{},
	"ublk_param_zoned":      Zoned{},
	"ublk_param_dma_align":  DMAAlign{},
	"ublk_param_segment":    Segment{},
	"ublk_param_integrity":  Integrity{},
	"ublk_params":           Params{},
}

func TestStructs(t *testing.T) {
	fields, seen := map[string]int{}, map[string]bool{}
	for _, line := range golden(t) {
		kind, rest, _ := strings.Cut(line, " ")
		switch kind {
		case "size":
			var name string
			var size uintptr
			scan(t, rest, &name, &size)
			v, ok := structs[name]
			if !ok {
				t.Errorf("%s: no Go structure", name)
				continue
			}
			seen[name] = true
			if got := reflect.TypeOf(v).Size(); got != size {
				t.Errorf("%s: %d bytes, the kernel's has %d", name, got, size)
			}
		case "field":
			var name string
			var off, size uintptr
			scan(t, rest, &name, &off, &size)
			of, _, _ := strings.Cut(name, ".")
			typ := reflect.TypeOf(structs[of])
			i := fields[of]
			fields[of]++
			if i >= typ.NumField() {
				t.Errorf("%s: no Go field", name)
				continue
			}
			if f := typ.Field(i); f.Offset != off || f.Type.Size() != size {
				t.Errorf("%s: %s lies at %d+%d, the kernel's at %d+%d", name, f.Name, f.Offset,
					f.Type.Size(), off, size)
			}
		}
	}
	for name, v := range structs {
		if !seen[name] {
			t.Errorf("%s: not in %s", name, goldenFile)
		}
		if n := reflect.TypeOf(v).NumField(); n != fields[name] {
			t.Errorf("%s: %d Go fields, %d in %s", name, n, fields[name], goldenFile)
		}
	}
}

func TestConstants(t *testing.T) {
	seen := 0
	for _, line := range golden(t) {
		kind, rest, _ := strings.Cut(line, " ")
		if kind != "const" {
			continue
		}
		var name string
		var want uint64
		scan(t, rest, &name, &want)
		got, ok := constants[name]
		if !ok {
			t.Errorf("%s: no Go constant", name)
			continue
		}
		seen++
		if got != want {
			t.Errorf("%s: %#x, the kernel has %#x", name, got, want)
		}
	}
	if seen != len(constants) {
		t.Errorf("%d constants checked, want %d", seen, len(constants))
	}
}

// TestGolden compiles the C program with a header that knows everything, if one is at hand: where
// UBLK_CMD_H says, or in the usual places.
func TestGolden(t *testing.T) {
	header := findHeader(t)
	if header == "" {
		t.Skip("skipped: no linux/ublk_cmd.h of Linux ≥ 7.3 here (set UBLK_CMD_H to its path)")
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		t.Skipf("skipped: no C compiler: %v", err)
	}
	program := filepath.Join(t.TempDir(), "abi")
	out, err := exec.Command(cc, "-Wall", "-Werror", fmt.Sprintf("-DUBLK_CMD_H=%q", header),
		"-o", program, generator).CombinedOutput()
	if err != nil {
		t.Fatalf("compile %s: %v\n%s", generator, err, out)
	}
	got, err := exec.Command(program).Output()
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what %s gives; %s says how to make it", goldenFile, header, generator)
	}
}

func findHeader(t *testing.T) string {
	if h := os.Getenv("UBLK_CMD_H"); h != "" {
		return h
	}
	places := []string{"/usr/include/linux/ublk_cmd.h"}
	for _, pattern := range []string{
		"/usr/src/*/include/uapi/linux/ublk_cmd.h",
		"/lib/modules/*/build/include/uapi/linux/ublk_cmd.h",
	} {
		more, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, more...)
	}
	for _, p := range places {
		text, err := os.ReadFile(p)
		if err == nil && bytes.Contains(text, []byte("UBLK_F_IO_DESC_SIZE")) {
			return p
		}
	}
	return ""
}

func golden(t *testing.T) (lines []string) {
	t.Helper()
	f, err := os.Open(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		lines = append(lines, s.Text())
	}
	if len(lines) == 0 {
		t.Fatalf("%s is empty", goldenFile)
	}
	return lines
}

func scan(t *testing.T, line string, args ...any) {
	t.Helper()
	if _, err := fmt.Sscan(line, args...); err != nil {
		t.Fatalf("%s: line %q: %v", goldenFile, line, err)
	}
}
