"""The recipes of docs/clients.md run, each by itself: a user takes one."""
import clients_page as page
import pytest


@pytest.mark.parametrize('heading', [heading for heading, text in page.sections().items() if '```python' in text])
def test_recipe_runs(heading):
    assert page.recipe(heading)
