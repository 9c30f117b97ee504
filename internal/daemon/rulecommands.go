package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"ubcache/internal/config"
	"ubcache/internal/control"
	"ubcache/internal/extents"
	"ubcache/internal/report"
)

// Times that the client of rule add waits.
const (
	// answerTime bounds how long it may take to find out where a path leads to.
	answerTime = 10 * time.Second
	// lookTime is how long the extents are waited for, which go on being looked for after it.
	lookTime = time.Second
)

// ruleAdd adds a rule to a device, in the cache and in the configuration.
func (in *Instance) ruleAdd(_ context.Context, a control.RuleAddArgs, _ control.ProgressFunc) (
	any, error,
) {
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	what := "add rule to " + a.Name
	s, err := in.find(a.Name)
	if err != nil {
		return nil, err
	}
	at, err := in.rules.place(&s.rules, &a)
	if err != nil {
		return nil, wrapOnce(what, err)
	}
	r, err := in.rules.add(&s.rules, a.Rule, at)
	if err == nil {
		err = in.rules.await(r)
	}
	if err == nil {
		err = in.editRules(s.name, func(list []config.Rule) ([]config.Rule, error) {
			if at > len(list) {
				return nil, report.Fail("write configuration", "its rules were edited meanwhile",
					"restart the cache first")
			}
			return slices.Insert(list, at, a.Rule), nil
		})
	}
	if err != nil {
		if r != nil {
			in.rules.remove(&s.rules, at)
		}
		return nil, wrapOnce(what, err)
	}
	return in.rules.status(s.name, &s.rules)[at], nil
}

// editRules changes the rules of a device in the configuration.
func (in *Instance) editRules(name string, change func([]config.Rule) ([]config.Rule, error)) error {
	return config.Edit(in.opts.ConfigPath, func(f *config.File) error {
		c := f.Caches[in.opts.Name]
		if c == nil || c.Backings[name] == nil {
			return report.Fail("write configuration", name+" is not in it", "")
		}
		list, err := change(c.Backings[name].Rules)
		c.Backings[name].Rules = list
		return err
	})
}

// place checks a new rule against those there are, and says at which index it goes.
func (s *ruleSet) place(d *deviceRules, a *control.RuleAddArgs) (at int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := d.config()
	at = len(list)
	if a.Before != "" {
		if at = config.FindRule(list, a.Before); at < 0 {
			return 0, noRule(a.Name, a.Before)
		}
	}
	if err := config.CheckRules(append(list, a.Rule)); err != nil {
		return 0, report.Misuse("%v", err)
	}
	return at, nil
}

func (d *deviceRules) config() []config.Rule {
	var list []config.Rule
	for _, r := range d.list {
		list = append(list, r.conf)
	}
	return list
}

func noRule(device, which string) error {
	return report.Fail("", fmt.Sprintf("%s has no rule %q", device, which), "ubcache rule list shows them")
}

// add puts a rule into the list. What is wrong with it now, it is refused for.
func (s *ruleSet) add(d *deviceRules, conf config.Rule, at int) (*rule, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.make(d, conf)
	switch {
	case err != nil:
		return nil, err
	case r.noUser != "":
		return nil, report.Refuse("", r.noUser, "")
	case r.noCgroup != "":
		return nil, report.Refuse("", r.noCgroup, "")
	case len(conf.Ranges) > 0 && len(r.parsed.Ranges) == 0:
		return nil, report.Refuse("", fmt.Sprintf("the device ends at %v, before the range",
			config.Size(d.size)), "")
	case conf.Path != "" && d.target == (extents.Device{}):
		return nil, report.Refuse("", "it is not served as a block device, so there are no files on it", "")
	}
	d.list = slices.Insert(d.list, at, r)
	s.watch(r)
	s.compile(d)
	return r, nil
}

// await waits until it is known where the rule's path leads to, and for its extents if they come soon.
func (s *ruleSet) await(r *rule) error {
	if r.conf.Path == "" {
		return nil
	}
	select {
	case <-r.answer:
	case <-time.After(answerTime):
		return report.Fail("", "no answer about "+r.conf.Path+" within "+answerTime.String(),
			"its filesystem may be busy; try again")
	}
	s.mu.Lock()
	found := r.found
	s.mu.Unlock()
	if !found.Found {
		return report.Refuse("", r.conf.Path+": "+found.Problem, "")
	}
	select {
	case <-r.looked:
	case <-time.After(lookTime):
	}
	return nil
}

// remove takes a rule out of the list.
func (s *ruleSet) remove(d *deviceRules, at int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unwatch(d.list[at])
	d.list = slices.Delete(d.list, at, at+1)
	s.compile(d)
}

// ruleDel removes a rule of a device.
func (in *Instance) ruleDel(_ context.Context, a control.RuleArgs, _ control.ProgressFunc) (
	any, error,
) {
	if err := in.change(); err != nil {
		return nil, err
	}
	defer in.changing.Unlock()
	what := "delete rule of " + a.Name
	s, err := in.find(a.Name)
	if err != nil {
		return nil, err
	}
	list := in.rules.status(s.name, &s.rules)
	var confs []config.Rule
	for i := range list {
		confs = append(confs, list[i].Rule)
	}
	at := config.FindRule(confs, a.Rule)
	if at < 0 {
		return nil, wrapOnce(what, noRule(a.Name, a.Rule))
	}
	err = in.editRules(s.name, func(list []config.Rule) ([]config.Rule, error) {
		// It may have been edited by hand since, so the same place need not have the same rule.
		i := slices.IndexFunc(list, func(r config.Rule) bool { return sameRule(&r, &confs[at]) })
		if i < 0 {
			return list, nil
		}
		return slices.Delete(list, i, i+1), nil
	})
	if err != nil {
		return nil, wrapOnce(what, err)
	}
	in.rules.remove(&s.rules, at)
	return list[at], nil
}

func sameRule(a, b *config.Rule) bool {
	x, y := *a, *b
	x.Ranges, x.Kinds, y.Ranges, y.Kinds = nil, nil, nil, nil
	return fmt.Sprint(x) == fmt.Sprint(y) && slices.Equal(a.Ranges, b.Ranges) &&
		slices.Equal(a.Kinds, b.Kinds)
}

// ruleList lists the rules of a device, or of all.
func (in *Instance) ruleList(_ context.Context, a control.NameArgs, _ control.ProgressFunc) (
	any, error,
) {
	devices := in.list()
	if a.Name != "" {
		s, err := in.find(a.Name)
		if err != nil {
			return nil, err
		}
		devices = []*served{s}
	}
	all := []control.Rule{}
	for _, s := range devices {
		all = append(all, in.rules.status(s.name, &s.rules)...)
	}
	return all, nil
}
