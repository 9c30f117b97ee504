package attrs

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ParseSet reads attributes from text, as a command line has them; all are explicit. Items are
// separated by commas, in any order:
//
//	hint=bypass           a name and a value: hint, mode, lifetime
//	prio=rt/2             class and level; prio=idle is idle/0
//	tenant=7              tenant=cgroup:4242 for a cgroup
//	deadline=500us        with a unit: us, ms, s
//	timing                no value
//	trace=0xfeed          decimal or hexadecimal
//	checksum=crc32c       return checksums of the data
//	checksum=crc32c:1a2b3c4d:5e6f7081
//	                      verify against these, in hexadecimal, one for each block
//	checksum=crc32c+return:1a2b3c4d
//	                      both
//	0xf001=c0ffee         an id without a name: the bytes of the value, in hexadecimal
//	required:hint         hint has to be handled, or the request fails
//
// An error names the item and what would be right. [Set.String] writes such text.
func ParseSet(text string) (Set, error) {
	var s Set
	var required []string
	if strings.TrimSpace(text) == "" {
		return s, nil
	}
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if name, ok := strings.CutPrefix(item, "required:"); ok {
			required = append(required, name)
			continue
		}
		if err := s.parseItem(item); err != nil {
			return Set{}, fmt.Errorf("attribute %q: %w", item, err)
		}
	}
	for _, name := range required {
		id, err := parseID(name)
		if err != nil {
			return Set{}, fmt.Errorf("attribute %q: %w", "required:"+name, err)
		}
		if s.Require(id); !s.Required(id) {
			return Set{}, fmt.Errorf("attribute %q: required, but not given", name)
		}
	}
	s.Prepare()
	return s, nil
}

// parseID reads a name of the registry or a number.
func parseID(name string) (ID, error) {
	if a, ok := Lookup(name); ok {
		return a.ID, nil
	}
	n, err := strconv.ParseUint(name, 0, 16)
	if err == nil && ID(n).Known() {
		return 0, fmt.Errorf("id %d is called %v", n, ID(n))
	}
	if err == nil && ID(n).valid() {
		return ID(n), nil
	}
	return 0, fmt.Errorf("no such attribute (one of %s, or an id as 0xf001)", attributeNames())
}

func attributeNames() string {
	var list []string
	for _, a := range registry[1:] {
		list = append(list, a.Name)
	}
	return strings.Join(list, ", ")
}

func (s *Set) parseItem(item string) error {
	name, value, given := strings.Cut(item, "=")
	id, err := parseID(name)
	if err != nil {
		return err
	}
	if s.Has(id) {
		return errTwice
	}
	switch id {
	case IDHint, IDMode, IDLifetime:
		return s.parseEnum(id, value)
	case IDPriority:
		return s.parsePriority(value)
	case IDChecksum:
		return s.parseChecksum(value)
	case IDTenant:
		return s.parseTenant(value)
	case IDDeadline:
		return s.parseDeadline(value)
	case IDTrace:
		n, err := strconv.ParseUint(value, 0, 64)
		if err != nil {
			return errors.New("not a number of 64 bits (such as 0xfeed)")
		}
		s.SetTrace(n)
	case IDTiming:
		if given {
			return errors.New("timing has no value")
		}
		s.SetTiming()
	default:
		b, err := hex.DecodeString(value)
		if err != nil {
			return errors.New("the value is not in hexadecimal, two digits for a byte")
		}
		return s.AddUnknown(id, b)
	}
	return nil
}

// oneOf is the error for a name that is not in a list.
func oneOf(names []string) error {
	list := strings.Join(names, ", ")
	return fmt.Errorf("no such value (one of %s)", strings.TrimPrefix(list, ", "))
}

func (s *Set) parseEnum(id ID, value string) error {
	v, ok := valueOf(registry[id].Values, value)
	if !ok {
		return oneOf(registry[id].Values)
	}
	s.put(id, v, SourceExplicit)
	return nil
}

func (s *Set) parsePriority(value string) error {
	class, level, given := strings.Cut(value, "/")
	c, ok := valueOf(registry[IDPriority].Values, class)
	if !ok {
		return oneOf(registry[IDPriority].Values)
	}
	if !given && Class(c) == ClassIdle {
		level = "0"
	}
	n, err := strconv.ParseUint(level, 10, 8)
	if err != nil || n > levelMax {
		return fmt.Errorf("needs a level of 0 to 7, as in %s/4", class)
	}
	s.SetPriority(Priority{Class: Class(c), Level: uint8(n)})
	return nil
}

func (s *Set) parseTenant(value string) error {
	number, cgroup := strings.CutPrefix(value, "cgroup:")
	n, err := strconv.ParseUint(number, 0, 64)
	if err != nil {
		return errors.New("not a number of 64 bits (as 7, or cgroup:4242)")
	}
	s.SetTenant(Tenant{ID: n, Cgroup: cgroup})
	return nil
}

func (s *Set) parseDeadline(value string) error {
	d, err := time.ParseDuration(value)
	if err != nil {
		return errors.New("not a time with a unit (such as 500us)")
	}
	if checkScalar(IDDeadline, uint64(d/time.Microsecond)) != ReasonNone || d%time.Microsecond != 0 {
		return errors.New("not whole microseconds from 1us to 4294967295us")
	}
	s.SetDeadline(d)
	return nil
}

func (s *Set) parseChecksum(value string) error {
	head, list, given := strings.Cut(value, ":")
	name, both := strings.CutSuffix(head, "+return")
	v, ok := valueOf(registry[IDChecksum].Values, name)
	if !ok {
		return oneOf(registry[IDChecksum].Values)
	}
	c := Checksum{Algorithm: Algorithm(v), Return: both || !given}
	if given {
		digits := 2 * c.Algorithm.Width()
		for sum := range strings.SplitSeq(list, ":") {
			n, err := strconv.ParseUint(sum, 16, 64)
			if err != nil || len(sum) != digits {
				return fmt.Errorf("%q is not a checksum of %d hexadecimal digits", sum, digits)
			}
			c.Sums = c.Algorithm.AppendSum(c.Sums, n)
		}
		if c.Blocks() > MaxBlocks {
			return fmt.Errorf("%d checksums; at most %d blocks can be verified", c.Blocks(), MaxBlocks)
		}
	}
	s.SetChecksum(c)
	return nil
}
