package shm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"
)

// inHeader is what ubcache_shm.h says, as a C expression, and what it has to be.
var inHeader = map[string]uint64{
	"UBC_VERSION": Version, "UBC_PAGE_BYTES": PageBytes, "UBC_SLOT_BYTES": SlotBytes,
	"UBC_BODY_BYTES": BodyBytes, "UBC_ANSWERS": Answers, "UBC_PAGE_SLOTS_BYTES": pageSlotsBytes,
	"UBC_MAX_PAGES": MaxPages, "UBC_MAX_ENTRIES": MaxEntries,
	"UBC_RING_HEAD_BYTES": ringHeadBytes, "UBC_MESSAGE_BYTES": MessageBytes,

	"offsetof(struct ubc_header, magic)":      headerMagic,
	"offsetof(struct ubc_header, version)":    headerVersion,
	"offsetof(struct ubc_header, size)":       headerSize,
	"offsetof(struct ubc_header, page_bytes)": headerPageBytes,
	"offsetof(struct ubc_header, slot_bytes)": headerSlotBytes,
	"offsetof(struct ubc_header, answers)":    headerAnswers,
	"offsetof(struct ubc_header, pages)":      headerPages,
	"offsetof(struct ubc_header, entries)":    headerEntries,
	"offsetof(struct ubc_header, flags)":      headerFlags,
	"offsetof(struct ubc_header, ring)":       headerRing,
	"offsetof(struct ubc_header, slots)":      headerSlots,
	"offsetof(struct ubc_header, data)":       headerData,
	"sizeof(struct ubc_header)":               headerBytes,

	"offsetof(struct ubc_slot, seq)":       uint64(unsafe.Offsetof(setSlot{}.seq)),
	"offsetof(struct ubc_slot, first)":     uint64(unsafe.Offsetof(setSlot{}.first)),
	"offsetof(struct ubc_slot, start)":     uint64(unsafe.Offsetof(setSlot{}.start)),
	"offsetof(struct ubc_slot, length)":    uint64(unsafe.Offsetof(setSlot{}.length)),
	"offsetof(struct ubc_slot, number)":    uint64(unsafe.Offsetof(setSlot{}.number)),
	"offsetof(struct ubc_slot, set_bytes)": uint64(unsafe.Offsetof(setSlot{}.setBytes)),
	"offsetof(struct ubc_slot, overflow)":  uint64(unsafe.Offsetof(setSlot{}.overflow)),
	"offsetof(struct ubc_slot, body)":      uint64(unsafe.Offsetof(setSlot{}.body)),
	"sizeof(struct ubc_slot)":              uint64(unsafe.Sizeof(setSlot{})),

	"offsetof(struct ubc_answer, claim)":         uint64(unsafe.Offsetof(answerSlot{}.claim)),
	"offsetof(struct ubc_answer, done)":          uint64(unsafe.Offsetof(answerSlot{}.done)),
	"offsetof(struct ubc_answer, bytes)":         uint64(unsafe.Offsetof(answerSlot{}.bytes)),
	"offsetof(struct ubc_answer, start)":         uint64(unsafe.Offsetof(answerSlot{}.start)),
	"offsetof(struct ubc_answer, length)":        uint64(unsafe.Offsetof(answerSlot{}.length)),
	"offsetof(struct ubc_answer, chunk)":         uint64(unsafe.Offsetof(answerSlot{}.chunk)),
	"offsetof(struct ubc_answer, body)":          uint64(unsafe.Offsetof(answerSlot{}.body)),
	"sizeof(struct ubc_answer)":                  uint64(unsafe.Sizeof(answerSlot{})),
	"offsetof(struct ubc_page_slots, answer)":    uint64(unsafe.Offsetof(pageSlots{}.answers)),
	"offsetof(struct ubc_page_slots, answer[2])": 3 * SlotBytes,
	"UBC_CLAIM(0x80000001u, 0x80000002u) >> 32":  0x80000001,
	"UBC_CLAIM(5, 0x80000002u) & 0xffffffffu":    0x80000002,
	"offsetof(struct ubc_ring, submit_head)":     ringSubmitHead,
	"offsetof(struct ubc_ring, submit_tail)":     ringSubmitTail,
	"offsetof(struct ubc_ring, complete_head)":   ringCompleteHead,
	"offsetof(struct ubc_ring, complete_tail)":   ringCompleteTail,
	"offsetof(struct ubc_ring, server_sleeps)":   ringServerSleeps,
	"offsetof(struct ubc_ring, client_sleeps)":   ringClientSleeps,
	"sizeof(struct ubc_entry)":                   EntryBytes,
	"sizeof(struct ubc_completion)":              CompletionBytes,
	"offsetof(struct ubc_completion, user_data)": 0,
	"offsetof(struct ubc_completion, result)":    8,
	"sizeof(struct ubc_message)":                 messageHeadBytes,
	"offsetof(struct ubc_message, text_bytes)":   48,
	"(UBC_FUA|UBC_NO_UNMAP|UBC_WITH_ATTRIBUTES)": uint64(flagsKnown),
	"UBC_FUA":             uint64(FUA),
	"UBC_NO_UNMAP":        uint64(NoUnmap),
	"UBC_WITH_ATTRIBUTES": uint64(WithAttributes),
	"UBC_OP_READ":         uint64(OpRead),
	"UBC_OP_WRITE":        uint64(OpWrite),
	"UBC_OP_FLUSH":        uint64(OpFlush),
	"UBC_OP_DISCARD":      uint64(OpDiscard),
	"UBC_OP_WRITE_ZEROES": uint64(OpWriteZeroes),
	"UBC_OP_QUERY":        uint64(OpQuery),
	"UBC_HELLO":           uint64(Hello),
	"UBC_LIST":            uint64(List),
	"UBC_OPEN_DEVICE":     uint64(OpenDevice),
	"UBC_QUERY":           uint64(Query),
	"UBC_FLAG_RING":       FlagRing,
	"UBC_FLAG_REGISTER":   FlagRegister,
	"UBC_FLAG_READ_ONLY":  FlagReadOnly,
	"UBC_FLAG_WRITE_ONLY": FlagWriteOnly,
	"memcmp(UBC_MAGIC, \"" + magic + "\", 5) == 0":                1,
	"memcmp(UBC_MESSAGE_MAGIC, \"" + messageMagic + "\", 5) == 0": 1,
}

// compile makes a program of C text that includes the header.
func compile(t *testing.T, text string, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	source, program := filepath.Join(dir, "x.c"), filepath.Join(dir, "x")
	here, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{
		"-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", here, "-o", program, source,
	}, more...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc (tools/need-gcc installs it): %v\n%s", err, out)
	}
	return program
}

// TestHeaderNumbers compares the C header with this package.
func TestHeaderNumbers(t *testing.T) {
	var b strings.Builder
	b.WriteString("#include <stdio.h>\n#include <string.h>\n#include \"ubcache_shm.h\"\nint main(void) {\n")
	for expr := range inHeader {
		fmt.Fprintf(&b, "printf(\"%%s\\t%%llu\\n\", %q, (unsigned long long)(%s));\n", expr, expr)
	}
	b.WriteString("return 0; }\n")
	out, err := exec.Command(compile(t, b.String())).Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		expr, text, _ := strings.Cut(strings.TrimSpace(line), "\t")
		want, ok := inHeader[expr]
		if !ok {
			t.Fatalf("unexpected line %q", line)
		}
		if seen++; text != fmt.Sprint(want) {
			t.Errorf("%s is %s, want %d", expr, text, want)
		}
	}
	if seen != len(inHeader) {
		t.Errorf("%d of %d compared", seen, len(inHeader))
	}
}

// TestHeaderLayout: a header, an entry and a message that C makes are read here.
func TestHeaderLayout(t *testing.T) {
	program := compile(t, `#include <stdio.h>
#include <string.h>
#include "ubcache_shm.h"
int main(void) {
	static const uint32_t sizes[][2] = {{1, 0}, {3, 1}, {1000, 64}, {UBC_MAX_PAGES, UBC_MAX_ENTRIES}};
	struct ubc_entry e = {.op = 3, .flags = 2, .device = 4, .bytes = 5, .off = 6, .data = 7, .user_data = 8};
	struct ubc_message m = {.magic = {'U','B','S','P'}, .version = 1, .kind = 3, .error = 2, .flags = 3,
		.index = 4, .number = 5, .block = 6, .max = 7, .size = 8, .dev = 9};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct ubc_header h;
		memset(&h, 0, sizeof(h));
		ubc_layout(&h, sizes[i][0], sizes[i][1]);
		fwrite(&h, sizeof(h), 1, stdout);
	}
	fwrite(&e, sizeof(e), 1, stdout);
	fwrite(&m, sizeof(m), 1, stdout);
	return 0;
}
`)
	out, err := exec.Command(program).Output()
	if err != nil || len(out) != 6*64 {
		t.Fatalf("%d bytes, %v", len(out), err)
	}
	for i, want := range [][2]int{{1, 0}, {3, 1}, {1000, 64}, {MaxPages, MaxEntries}} {
		var l layout
		if err := l.decode(out[64*i:], layoutOf(want[0], want[1]).size); err != nil ||
			l.pages != want[0] || l.entries != want[1] {
			t.Errorf("%v: %+v, %v", want, l, err)
		}
	}
	var e Entry
	if want := (Entry{OpDiscard, NoUnmap, 4, 5, 6, 7, 8}); !e.decode(out[4*64:]) || e != want {
		t.Errorf("entry %+v, want %+v", e, want)
	}
	var m Message
	want := Message{OpenDevice, 2, 3, 4, 5, 6, 7, 8, 9, ""}
	if err := m.decode(out[5*64:]); err != nil || m != want {
		t.Errorf("message %+v, want %+v, %v", m, want, err)
	}
}
