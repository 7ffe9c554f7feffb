"""What is imported from `vitzoo.viz`, wherever it is drawn."""
import vitzoo.viz
import vitzoo_runtime.pictures


def test_public_names():
    for name in 'contact_sheet', 'draw_detections', 'draw_segmentation', 'palette':
        assert getattr(vitzoo.viz, name) is getattr(vitzoo_runtime.pictures, name)
    assert vitzoo.viz.draw_pareto is vitzoo.viz.pareto.draw_pareto
    assert vitzoo.viz.draw_token_maps is vitzoo.viz.token_maps.draw_token_maps
