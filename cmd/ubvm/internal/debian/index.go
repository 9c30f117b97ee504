package debian

import "strings"

// A Package is one version of a binary package.
type Package struct {
	Name, Version string
	Depends       []string // names only, first alternative
}

// Index holds the packages by name; of several versions the first listed, which apt-cache
// dumpavail makes the newest.
type Index map[string]Package

func parseIndex(text string) Index {
	index := Index{}
	for _, s := range stanzas(text) {
		p := Package{Name: s["package"], Version: s["version"]}
		if p.Name == "" || p.Version == "" {
			continue
		}
		if _, seen := index[p.Name]; seen {
			continue
		}
		for dep := range strings.SplitSeq(s["depends"], ",") {
			if f := strings.Fields(dep); len(f) > 0 {
				p.Depends = append(p.Depends, f[0])
			}
		}
		index[p.Name] = p
	}
	return index
}
